"""The chunked head compared with its naive twin."""

import pytest
import torch
from analysis.planning.allocated import Peak
from torch import nn
from torch._dynamo.utils import counters

from mdmscale.config.section import HeadKind
from mdmscale.models import head as head_module
from mdmscale.models.head import HeadOutput, MaskedCrossEntropyHead, is_fused, naive_masked_cross_entropy
from mdmscale.models.shape import head_chunk

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}


def inputs(num_masked: int, dtype: torch.dtype) -> tuple[torch.Tensor, nn.Linear, torch.Tensor, torch.Tensor]:
    torch.manual_seed(num_masked)
    hidden = torch.randn(num_masked, 24).to(dtype).requires_grad_()
    linear = nn.Linear(24, 50, bias=False, dtype=dtype)
    return hidden, linear, torch.randint(0, 50, (num_masked,)), torch.rand(num_masked)


def gradients(
    output: HeadOutput, hidden: torch.Tensor, linear: nn.Linear
) -> tuple[torch.Tensor, torch.Tensor]:
    hidden.grad = linear.weight.grad = None
    (3 * output.loss).backward()
    assert hidden.grad is not None and linear.weight.grad is not None
    return hidden.grad, linear.weight.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_masked", [1, 7, 64, 65])
@pytest.mark.parametrize("chunk_size", [1, 8, 1000])
@pytest.mark.parametrize("kind", ["chunked", "fused"])
def test_matches_the_naive_twin(kind: HeadKind, num_masked: int, chunk_size: int, dtype: torch.dtype) -> None:
    hidden, linear, targets, weights = inputs(num_masked, dtype)
    head = MaskedCrossEntropyHead.replacing(linear, chunk_size, kind)
    fast, naive = (
        head(hidden, targets, weights),
        naive_masked_cross_entropy(hidden, linear.weight, targets, weights),
    )
    for mine, twin in zip(fast, naive, strict=True):
        torch.testing.assert_close(mine, twin, rtol=1e-5, atol=1e-5)
    for mine, twin in zip(gradients(fast, hidden, linear), gradients(naive, hidden, linear), strict=True):
        torch.testing.assert_close(mine, twin, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_two_kernels_serve_chunks_of_any_size() -> None:
    """This includes two chunks of one row, which the compiler treats separately."""
    torch._dynamo.reset()
    counters.clear()
    for num_masked in (17, 40, 9, 23):
        hidden, linear, targets, weights = inputs(num_masked, torch.float32)
        MaskedCrossEntropyHead.replacing(linear, 8, "fused")(hidden, targets, weights)
    assert counters["stats"]["unique_graphs"] <= 4
    assert not counters["graph_break"]


def test_auto_compiles_on_cuda_where_there_is_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    for has_triton in (True, False):
        monkeypatch.setattr(head_module, "can_compile", lambda device, found=has_triton: found)
        assert is_fused("auto", cuda) == has_triton
        assert not is_fused("auto", cpu) and not is_fused("chunked", cuda) and is_fused("fused", cpu)


def test_nothing_masked_is_zero_and_still_connected() -> None:
    hidden, linear, targets, weights = inputs(0, torch.float32)
    output = MaskedCrossEntropyHead.replacing(linear, 8)(hidden, targets, weights)
    assert output.loss.item() == 0
    output.loss.backward()
    assert linear.weight.grad is not None
    assert linear.weight.grad.abs().max() == 0


def test_squared_norms_are_those_of_the_logit_gradients() -> None:
    hidden, linear, targets, weights = inputs(5, torch.float32)
    logits = (hidden @ linear.weight.T).detach().requires_grad_()
    torch.nn.functional.cross_entropy(logits, targets, reduction="sum").backward()
    assert logits.grad is not None
    output = MaskedCrossEntropyHead.replacing(linear, 2)(hidden, targets, weights)
    torch.testing.assert_close(output.squared_norms, logits.grad.square().sum(dim=1))


def test_no_temporary_is_larger_than_a_chunk() -> None:
    """Neither forward nor backward creates a tensor of masked x vocab elements."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            for value in result if isinstance(result, tuple | list) else [result]:
                if isinstance(value, torch.Tensor):
                    largest = max(largest, value.numel())
            return result

    hidden, linear, targets, weights = inputs(512, torch.float32)
    with Watch():
        MaskedCrossEntropyHead.replacing(linear, 8)(hidden, targets, weights).loss.backward()
    assert 0 < largest <= max(512 * 24, 50 * 24, 8 * 50)


def test_a_chunks_logits_become_its_gradient_in_place() -> None:
    """Only one fp32 tensor [chunk, vocab] is alive at a time, also across chunks."""
    hidden, linear, targets, weights = inputs(96, torch.float32)
    head = MaskedCrossEntropyHead.replacing(linear, 32)
    with Peak() as peak, torch.no_grad():
        head(hidden, targets, weights)
    logits = 32 * 50 * 4
    assert logits < peak.most < 1.5 * logits


@pytest.mark.parametrize("kind", ["chunked", "fused"])
def test_large_logits_cost_no_precision(kind: HeadKind) -> None:
    hidden, linear, targets, weights = inputs(20, torch.float32)
    linear.weight.data *= 300
    head = MaskedCrossEntropyHead.replacing(linear, 8, kind)
    fast, naive = (
        head(hidden, targets, weights),
        naive_masked_cross_entropy(hidden, linear.weight, targets, weights),
    )
    assert naive.losses.max() > 500
    for mine, twin in zip(fast, naive, strict=True):
        torch.testing.assert_close(mine, twin, rtol=1e-5, atol=1e-5)


def test_the_chunk_follows_the_vocabulary() -> None:
    hidden, linear, targets, weights = inputs(7, torch.float32)
    by_itself = MaskedCrossEntropyHead.replacing(linear, None)(hidden, targets, weights)
    given = MaskedCrossEntropyHead.replacing(linear, 7)(hidden, targets, weights)
    assert torch.equal(by_itself.losses, given.losses)
    assert head_chunk(126_464) == 1061 and head_chunk(1 << 30) == 1


def test_frozen_weight_and_no_grad() -> None:
    hidden, linear, targets, weights = inputs(6, torch.float32)
    linear.weight.requires_grad_(False)
    head = MaskedCrossEntropyHead.replacing(linear, 4)
    head(hidden, targets, weights).loss.backward()
    assert linear.weight.grad is None
    assert hidden.grad is not None
    with torch.no_grad():
        assert not head(hidden, targets, weights).loss.requires_grad


def test_without_targets_it_is_the_linear_it_replaces() -> None:
    hidden, linear, _, _ = inputs(6, torch.float32)
    head = MaskedCrossEntropyHead.replacing(linear, 4)
    assert head.weight is linear.weight
    torch.testing.assert_close(head(hidden), linear(hidden))


def test_a_bias_is_refused() -> None:
    with pytest.raises(ValueError, match="bias"):
        MaskedCrossEntropyHead.replacing(nn.Linear(4, 4), 8)
