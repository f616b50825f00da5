"""The memory model compared with torch and DeepSpeed on the CPU: each part within 5% of allocated bytes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from analysis.planning.allocated import Peak, Saved
from transformers import AutoModelForCausalLM, PreTrainedModel

from mdmscale.analysis.planning.memory import activation_bytes, head_bytes, memory_of
from mdmscale.analysis.planning.workload import Workload
from mdmscale.models.backbone import DTYPES, scratch_config
from mdmscale.models.head import MaskedCrossEntropyHead
from mdmscale.models.mdm import MaskedDiffusionModel
from mdmscale.models.packed_attention import PackedRows, attend_in_rows
from mdmscale.models.recomputation import recompute_activations

WITHIN = 0.05


def build(workload: Workload) -> PreTrainedModel:
    options = workload.config.model
    model = AutoModelForCausalLM.from_config(
        scratch_config(options, 0), dtype=DTYPES[options.dtype], attn_implementation=options.attention
    )
    recompute_activations(model, options.activation_checkpointing)
    return model.train()


def rows_of(workload: Workload) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Token ids, and a padding mask if the plan includes one."""
    token_ids = torch.randint(
        0, workload.shape.vocab, (workload.batch_layout.rows_per_forward, workload.length)
    )
    if not workload.rows_may_be_padded:
        return token_ids, None
    mask = torch.ones_like(token_ids)
    mask[0, -7:] = 0
    return token_ids, mask


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "sections",
    [
        {"model": {"architecture": "llama"}},
        {"model": {"architecture": "qwen2", "num_key_value_heads": 4}},
        {"model": {"architecture": "qwen3", "head_dim": 48}},
        {"model": {"architecture": "llama"}, "data": {"random_length_fraction": 0.5}},
        {"model": {"architecture": "qwen3"}, "diffusion": {"masking": "mirror"}},
        {"model": {"attention": "eager"}},
    ],
    ids=["llama", "qwen2", "qwen3", "padded", "pairs", "eager"],
)
def test_activations(small_workload: Callable[..., Workload], dtype: str, sections: dict[str, Any]) -> None:
    """The bytes of the decoder that autograd keeps at the end of forward."""
    workload = small_workload(**{**sections, "model": {**sections["model"], "dtype": dtype}})
    model = build(workload)
    token_ids, mask = rows_of(workload)
    with Saved(model.parameters()) as saved:
        model.model(input_ids=token_ids, attention_mask=mask, use_cache=False)
    assert saved.num_bytes == pytest.approx(activation_bytes(workload), rel=WITHIN)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("annealing_steps", [0, 10], ids=["open", "annealed"])
def test_activations_of_packed_rows(
    small_workload: Callable[..., Workload], dtype: str, annealing_steps: int
) -> None:
    """Packed rows of different lengths, with as many tokens as one row of the maximum length."""
    workload = small_workload(
        model={"dtype": dtype, "num_key_value_heads": 2, "attention_annealing_steps": annealing_steps},
        data={"random_length_fraction": 0.5},
        train={"micro_batch_size": 4, "packing": True},
    )
    model = build(workload)
    attend_in_rows(model)
    lengths = (workload.length - 8, workload.length - 4, workload.length + 4, workload.length + 8)
    pairs = torch.ones(1, 1, max(lengths), max(lengths), dtype=torch.bool) if annealing_steps else None
    token_ids = torch.randint(0, workload.shape.vocab, (1, sum(lengths)))
    position_ids = torch.cat([torch.arange(length) for length in lengths])[None]
    with Saved(model.parameters()) as saved:
        model.model(
            input_ids=token_ids,
            attention_mask=pairs,
            position_ids=position_ids,
            packed_rows=PackedRows.of(lengths, token_ids.device),
            use_cache=False,
        )
    assert saved.num_bytes == pytest.approx(activation_bytes(workload), rel=WITHIN)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_checkpointed_activations(small_workload: Callable[..., Workload], dtype: str) -> None:
    """At the end of forward only each layer's input is kept."""
    workload = small_workload(
        model={"dtype": dtype, "num_hidden_layers": 6, "activation_checkpointing": "full"}
    )
    model = build(workload)
    with Saved(model.parameters()) as saved:
        model.model(input_ids=rows_of(workload)[0], use_cache=False)
    assert saved.num_bytes == pytest.approx(activation_bytes(workload), rel=WITHIN)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "sections",
    [
        {"model": {"architecture": "llama", "num_hidden_layers": 6}},
        {"model": {"architecture": "qwen3", "head_dim": 48}, "data": {"random_length_fraction": 0.5}},
        {"model": {"attention": "eager"}},
    ],
    ids=["llama", "qwen3 padded", "eager"],
)
def test_selectively_checkpointed_activations(
    small_workload: Callable[..., Workload], dtype: str, sections: dict[str, Any]
) -> None:
    """At the end of forward inputs and the outputs of matrix products and attention are kept."""
    keys = {"dtype": dtype, "activation_checkpointing": "selective"}
    workload = small_workload(**sections | {"model": sections["model"] | keys})
    model = build(workload)
    token_ids, mask = rows_of(workload)
    if mask is not None:
        mask = mask.bool()[:, None, None, :]
    with Peak() as peak:
        output = model.model(input_ids=token_ids, attention_mask=mask, use_cache=False)
    assert output is not None
    assert peak.alive == pytest.approx(activation_bytes(workload), rel=WITHIN)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("vocab", [512, 2048], ids=["layers", "head"])
@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
def test_forward_and_backward(
    small_workload: Callable[..., Workload], dtype: str, vocab: int, checkpointing: str
) -> None:
    """The peak beyond weights and gradients, whether layers or the head need more."""
    keys = {"dtype": dtype, "num_hidden_layers": 4, "vocab_size": vocab}
    keys |= {"head": "chunked", "head_chunk_size": 96}
    workload = small_workload(
        model=keys | {"activation_checkpointing": checkpointing}, train={"micro_batch_size": 2}
    )
    model = MaskedDiffusionModel(build(workload), 96).train()
    token_ids, _ = rows_of(workload)
    positions = torch.arange(token_ids.numel())

    def run() -> None:
        model(token_ids, None, positions, token_ids.flatten(), torch.ones(len(positions))).loss.backward()

    run()  # gradients are there from now on
    with Peak() as peak:
        run()
    memory = memory_of(workload)
    assert peak.most == pytest.approx(memory.activations + memory.head, rel=WITHIN)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("chunk", [64, 512], ids=["small chunk", "large chunk"])
def test_head(small_workload: Callable[..., Workload], dtype: str, chunk: int) -> None:
    """The peak of the head while it computes its gradients, with all positions masked."""
    workload = small_workload(
        model={"dtype": dtype, "head": "chunked", "head_chunk_size": chunk, "vocab_size": 2048},
        train={"micro_batch_size": 16},
    )
    width, masked = DTYPES[dtype], int(workload.tokens)
    linear = torch.nn.Linear(workload.shape.hidden, workload.shape.vocab, bias=False, dtype=width)
    head = MaskedCrossEntropyHead.replacing(linear, chunk)
    decoder_output = torch.randn(masked, workload.shape.hidden, dtype=width, requires_grad=True)
    with Peak() as peak:
        hidden = decoder_output[torch.arange(masked)]
        head(hidden, torch.zeros(masked, dtype=torch.int64), torch.ones(masked))
    assert peak.most == pytest.approx(head_bytes(workload, masked, with_gradients=True), rel=WITHIN)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_probes_forward(small_workload: Callable[..., Workload], dtype: str) -> None:
    """The peak of a layer without gradients, for all rows that a probe's forward takes."""
    workload = small_workload(
        model={"dtype": dtype, "vocab_size": 64},
        diffusion={"t_sampler": "p_pots", "p_pots": {"num_masks": 8}},
    )
    model = build(workload)
    token_ids = torch.randint(0, 64, (8, workload.length))
    with Peak() as peak, torch.no_grad():
        model.model(input_ids=token_ids, use_cache=False)
    assert peak.most == pytest.approx(memory_of(workload).probe, rel=WITHIN)
