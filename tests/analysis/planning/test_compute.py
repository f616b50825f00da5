"""Operations compared with torch's own count, and speeds with published measurements."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import ROOT
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from mdmscale.analysis.planning.compute import forward_flops, model_flops
from mdmscale.analysis.planning.hardware import make_cluster
from mdmscale.analysis.planning.plan import Plan, make_plan
from mdmscale.analysis.planning.planned_shape import planned_shape
from mdmscale.analysis.planning.workload import Workload
from mdmscale.config.run import RunConfig
from mdmscale.models.backbone import scratch_config
from mdmscale.models.head import MaskedCrossEntropyHead

LLAMA_8B = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
LLAMA_70B = LLAMA_8B | {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
}
LLAMA_2_13B = {
    "vocab_size": 32000,
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "num_key_value_heads": 40,
}


def test_operations_are_those_that_torch_counts(small_workload: Callable[..., Workload]) -> None:
    """A step with one forward and backward, in which the expected number of positions is masked."""
    workload = small_workload(
        model={"dtype": "fp32", "attention": "eager", "head_chunk_size": 10_000},
        train={"global_batch_size": 2},
    )
    model = AutoModelForCausalLM.from_config(
        scratch_config(workload.config.model, 0), attn_implementation="eager"
    )
    head = MaskedCrossEntropyHead.replacing(model.lm_head, 10_000)
    token_ids = torch.zeros(2, workload.length, dtype=torch.int64)
    masked = int(workload.tokens * workload.masked_share)
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        model.model(input_ids=token_ids, use_cache=False)
    assert workload.tokens * forward_flops(workload) == pytest.approx(forward.get_total_flops(), rel=0.01)
    with FlopCounterMode(display=False) as counted:
        hidden = model.model(input_ids=token_ids, use_cache=False).last_hidden_state.flatten(0, 1)[:masked]
        head(hidden, torch.zeros(masked, dtype=torch.int64), torch.ones(masked)).loss.backward()
    assert model_flops(workload) == pytest.approx(counted.get_total_flops(), rel=0.01)


def plan(model: dict[str, Any], length: int, micro: int, gpu: str, num_gpus: int, **keys: Any) -> Plan:
    values = {
        "run": {"name": "anchor"},
        "model": {
            "tokenizer": "nowhere",
            "max_position_embeddings": length,
            "head": "chunked",
            **model,
            **keys,
        },
        "data": {
            "kind": "tokens",
            "path": "nowhere",
            "sequence_length": length,
            "random_length_fraction": 0.0,
        },
        "train": {"steps": 10, "global_batch_size": micro * num_gpus, "micro_batch_size": micro},
        "optimizer": {"lr": 1e-4},
        "parallel": {"zero_stage": 3},
    }
    config = RunConfig.model_validate(values)
    cluster = make_cluster(gpu, "ndr400", num_gpus, None)
    return make_plan(config, planned_shape(config.model)[0], cluster)


@pytest.mark.parametrize(
    ("published", "arguments", "checkpointing"),
    [
        ((5762, 6667), (LLAMA_8B, 8192, 2, "h100-80g", 8), False),
        ((2904, 2973), (LLAMA_8B, 8192, 1, "a100-80g", 64), False),
        ((331, 331), (LLAMA_70B, 8192, 1, "a100-80g", 64), True),
        ((2162, 2162), (LLAMA_2_13B, 4096, 2, "a100-80g", 64), False),
    ],
    ids=["8B on 8 H100", "8B on 64 A100", "70B on 64 A100", "13B on 64 A100"],
)
def test_speeds_are_near_torchtitans(
    published: tuple[int, int], arguments: tuple[Any, ...], checkpointing: bool
) -> None:
    """Tokens/s per GPU agree within 15% with torchtitan's docs/performance.md (FSDP, same global batch)."""
    speed = plan(*arguments, activation_checkpointing=checkpointing)
    slowest, fastest = published
    planned = speed.tokens_per_second / speed.cluster.num_gpus
    assert 0.85 * slowest < planned < 1.15 * fastest
    assert f"{fastest:,} | {planned:,.0f} |" in (ROOT / "docs" / "planning.md").read_text(encoding="utf-8")


def test_attention_is_counted_in_full_and_grows_with_the_length(
    small_workload: Callable[..., Workload],
) -> None:
    short, long = (small_workload(data={"sequence_length": length}) for length in (96, 192))
    more = forward_flops(long) - forward_flops(short)
    assert more == 3 * 4 * 128 * 96  # layers x 4 x queries x tokens more


def test_pairs_cost_two_rows_and_recomputation_a_pass_more(small_workload: Callable[..., Workload]) -> None:
    single, pair = small_workload(), small_workload(diffusion={"masking": "mirror"})
    assert model_flops(pair) == 2 * model_flops(single)
    with_recompute = small_workload(model={"activation_checkpointing": True})
    assert model_flops(with_recompute) == model_flops(single), "MFU does not count it"
    fast, between, slow = (
        plan(LLAMA_8B, 2048, 1, "h100-80g", 8, activation_checkpointing=each)
        for each in ("none", "selective", "full")
    )
    assert fast.compute.backward < between.compute.backward < 1.15 * fast.compute.backward
    assert slow.compute.backward == pytest.approx(1.5 * fast.compute.backward)
    assert slow.mfu < fast.mfu


def test_an_autoregressive_step_has_half_the_pairs_and_predicts_every_token(
    small_workload: Callable[..., Workload],
) -> None:
    full, causal = (small_workload(diffusion={"objective": objective}) for objective in ("full", "ar"))
    assert causal.masked_share == 1.0
    shape, length = full.shape, full.length
    pairs = 4 * shape.layers * shape.query * length  # operations a token
    assert forward_flops(full) - forward_flops(causal) == pytest.approx(
        pairs * (1 - (length + 1) / length / 2)
    )
    assert causal.is_causal and not full.is_causal
