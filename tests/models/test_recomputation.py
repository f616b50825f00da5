"""Recomputed activations give the same gradients as kept ones, at the stated cost."""

from pathlib import Path
from typing import Any

import pytest
import torch
from models.small import LAYOUTS, assert_same, loss_and_gradients, small_batch, small_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from mdmscale.models.recomputation import recompute_activations

LENGTHS = (24, 9, 24, 3)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("what", ["selective", "full"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "qwen2"])
def test_gradients_are_those_of_kept_activations(corpus: Path, family: str, what: str, layout: str) -> None:
    kept, recomputed = (small_model(corpus, layout, architecture=family) for _ in range(2))
    recompute_activations(recomputed.backbone, what)
    batch = small_batch(layout, LENGTHS)
    assert_same(loss_and_gradients(recomputed, batch), loss_and_gradients(kept, batch), 1e-6)
    with torch.no_grad():
        assert torch.equal(recomputed(**batch).loss, kept(**batch).loss)


def flops(model: torch.nn.Module, layout: str) -> int:
    with FlopCounterMode(display=False) as counter:
        loss_and_gradients(model, small_batch(layout, LENGTHS))
    return counter.get_total_flops()


@pytest.mark.parametrize("layout", ["plain", "padded", "annealed", "packed"])
def test_selective_repeats_no_product(corpus: Path, layout: str) -> None:
    kept, selective, full = (small_model(corpus, layout) for _ in range(3))
    recompute_activations(selective.backbone, "selective")
    recompute_activations(full.backbone, "full")
    assert flops(kept, layout) == flops(selective, layout) < flops(full, layout)


class Attentions(TorchDispatchMode):
    """Counts attention's forward operations, which torch's FLOP counter omits on the CPU."""

    num = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.num += "scaled_dot_product" in str(func) and "backward" not in str(func)
        return func(*args, **(kwargs or {}))


def num_attentions(model: torch.nn.Module, layout: str) -> int:
    with Attentions() as counter:
        loss_and_gradients(model, small_batch(layout, LENGTHS))
    return counter.num


@pytest.mark.parametrize("layout", ["plain", "padded", "annealed", "packed"])
def test_selective_repeats_no_attention(corpus: Path, layout: str) -> None:
    kept, selective, full = (small_model(corpus, layout) for _ in range(3))
    recompute_activations(selective.backbone, "selective")
    recompute_activations(full.backbone, "full")
    num = num_attentions(kept, layout)
    assert num > 0
    assert num_attentions(selective, layout) == num
    assert num_attentions(full, layout) == 2 * num
