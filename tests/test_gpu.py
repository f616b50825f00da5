"""Tests that need a GPU: its kernels give the same numbers, and whole runs work."""

import json
from pathlib import Path

import pytest
import torch
from analysis.planning.conftest import SMALL
from conftest import ROOT, launch_ranks, tiny_values
from transformers import AutoModelForCausalLM

from mdmscale.analysis.planning.memory import memory_of
from mdmscale.analysis.planning.planned_shape import planned_shape
from mdmscale.analysis.planning.workload import make_workload
from mdmscale.config.run import RunConfig
from mdmscale.config.section import HeadKind, Recomputation
from mdmscale.data.prefetch import Prefetcher
from mdmscale.models.backbone import scratch_config
from mdmscale.models.head import MaskedCrossEntropyHead, naive_masked_cross_entropy
from mdmscale.models.mdm import MaskedDiffusionModel
from mdmscale.models.packed_attention import PackedRows, packed_attention
from mdmscale.models.recomputation import recompute_activations
from mdmscale.training.metrics import read_metrics
from tools.measure_data import fitted_sampler, make_config, make_loader, open_corpus, write_documents

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 3e-2)], ids=["fp32", "bf16"]
)
@pytest.mark.parametrize("kind", ["chunked", "fused"])
def test_head_matches_its_naive_twin(kind: HeadKind, dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(64, 1000, bias=False, dtype=dtype, device="cuda")
    hidden = torch.randn(300, 64, dtype=dtype, device="cuda", requires_grad=True)
    targets, weights = torch.randint(0, 1000, (300,), device="cuda"), torch.rand(300, device="cuda")
    gradients = []
    for output in (
        MaskedCrossEntropyHead.replacing(linear, 128, kind)(hidden, targets, weights),
        naive_masked_cross_entropy(hidden, linear.weight, targets, weights),
    ):
        gradients.append(torch.autograd.grad(output.loss, (hidden, linear.weight)))
    for mine, twin in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, twin, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("is_causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("key_heads", [2, 4])
def test_packed_rows_attend_as_alone(key_heads: int, is_causal: bool) -> None:
    """The kernel for packed rows agrees with sdpa on each row, in values and gradients."""
    torch.manual_seed(0)
    lengths = (70, 70, 3, 129)
    rows = PackedRows.of(lengths, torch.device("cuda"))
    results = []
    inputs = [
        torch.randn(1, heads, sum(lengths), 64, device="cuda", dtype=torch.bfloat16)
        for heads in (4, key_heads, key_heads)
    ]
    for dtype in (torch.bfloat16, torch.float32):  # fp32 has no such kernel
        query, key, value = (each.to(dtype, copy=True).requires_grad_() for each in inputs)
        attended = packed_attention(query, key, value, rows, is_causal=is_causal)
        attended.float().square().sum().backward()
        results.append([each.float() for each in (attended, query.grad, key.grad, value.grad)])
    for kernel, reference in zip(*results, strict=True):
        torch.testing.assert_close(kernel, reference, rtol=5e-2, atol=5e-2)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_bf16_run_trains_and_exports(corpus: Path, tmp_path: Path, stage: int) -> None:
    values = tiny_values(corpus, tmp_path)
    values["model"]["dtype"] = "bf16"
    values["parallel"] = {"zero_stage": stage}
    values["train"]["steps"] = 60
    (tmp_path / "config.yaml").write_text(json.dumps(values))
    process = launch_ranks(1, ROOT / "launchers" / "train.py", "--config", str(tmp_path / "config.yaml"))
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    losses = [record["loss"] for record in read_metrics(tmp_path / "tiny")]
    assert sum(losses[-10:]) < sum(losses[:10])
    assert (tmp_path / "tiny" / "hf" / "model.safetensors").is_file()


def test_batches_made_ahead_are_pinned_and_the_same(tmp_path: Path) -> None:
    write_documents(tmp_path / "shard", 100, 16)
    config = make_config(tmp_path / "shard", "tokens", 16)
    loader, sampler = make_loader(config, open_corpus(config)), fitted_sampler(config)
    with Prefetcher(loader, None, torch.device("cuda")) as prefetcher:
        for step in range(6):
            pinned, plain = (each.micro_batches(step, sampler) for each in (prefetcher, loader))
            for batch, other in zip(pinned, plain, strict=True):
                assert batch.input_ids.is_pinned() and batch.weights.is_pinned()
                for name, value in batch.to(torch.device("cuda")).model_inputs.items():
                    expected = other.model_inputs[name]
                    assert torch.equal(value.cpu(), expected) if expected is not None else value is None


@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
def test_a_plans_memory_is_the_devices(checkpointing: Recomputation) -> None:
    """The memory of forward and backward beyond weights and gradients is planned to 10%."""
    model = {"hidden_size": 1024, "intermediate_size": 2816, "num_attention_heads": 8, "vocab_size": 8192}
    values = SMALL | {
        "model": SMALL["model"] | model | {"activation_checkpointing": checkpointing},
        "data": SMALL["data"] | {"sequence_length": 512},
    }
    config = RunConfig.model_validate(values)
    job = make_workload(config, planned_shape(config.model)[0], 1)
    backbone = AutoModelForCausalLM.from_config(scratch_config(config.model, 0), dtype=torch.bfloat16)
    recompute_activations(backbone, checkpointing)
    network = MaskedDiffusionModel(backbone, config.model.head_chunk_size).train().cuda()
    token_ids = torch.zeros(job.layout.rows_per_forward, job.length, dtype=torch.int64, device="cuda")
    positions = torch.arange(token_ids.numel(), device="cuda")
    weights = torch.ones(len(positions), device="cuda")
    network(token_ids, None, positions, token_ids.flatten(), weights).loss.backward()  # makes the gradients
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    network(token_ids, None, positions, token_ids.flatten(), weights).loss.backward()
    memory = memory_of(job)
    assert torch.cuda.max_memory_allocated() - before == pytest.approx(
        memory.activations + memory.head, rel=0.1
    )
