"""The cost of a training step, as counts, because times differ between machines."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from models.small import LAYOUTS, loss_and_gradients, small_batch, small_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mdmscale.config.section import Recomputation
from mdmscale.models.recomputation import recompute_activations

LENGTHS = (24, 9, 24, 3)
VOCABULARY = 512
CHUNK = 16
# On a GPU each of these makes the host wait, as it needs a value or a size that the device is yet to find.
WAITING = {"_local_scalar_dense", "item", "is_nonzero", "nonzero", "masked_select", "equal", "_unique2"}


def is_view(func: Any) -> bool:
    """Whether an operation only returns a view, which costs the device nothing."""
    aliases = [each.alias_info for each in func._schema.returns if each.alias_info is not None]
    return func is torch.ops.aten._unsafe_view.default or any(not alias.is_write for alias in aliases)


def is_chunk_of_logits(value: Any) -> bool:
    """Whether a tensor is a whole chunk of the head, [CHUNK, VOCABULARY], or its transpose."""
    shapes = ((CHUNK, VOCABULARY), (VOCABULARY, CHUNK))
    return isinstance(value, torch.Tensor) and tuple(value.shape) in shapes


class Operations(TorchDispatchMode):
    """Counts operations other than views, operations that wait, and the tensors that they create."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.waiting: list[str] = []
        self.largest = 0  # elements of an output
        self.most_logits = 0  # the same of what has a column for each word
        self.head_rows = 0  # of hidden vectors that the head multiplied by its weight
        self.on_logits: Counter[str] = Counter()  # those that read or write what has a column for each word

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if is_view(func):
            return func(*args, **(kwargs or {}))
        self.counts[name] += 1
        indices = args[1] if name in ("index", "index_put", "index_put_") else []
        by_mask = any(each is not None and each.dtype in (torch.bool, torch.uint8) for each in indices)
        if name in WAITING or by_mask:
            self.waiting.append(str(func))
        output = func(*args, **(kwargs or {}))
        for each in tree_leaves(output):
            if isinstance(each, torch.Tensor):
                self.largest = max(self.largest, each.numel())
                if each.shape[-1:] == (VOCABULARY,):
                    self.most_logits = max(self.most_logits, each.numel())
        if any(is_chunk_of_logits(each) for each in tree_leaves((args, output))):
            self.on_logits[name] += 1
        if name in ("mm", "addmm") and output.shape[-1] == VOCABULARY:
            self.head_rows += len(output)
        return output


def step_operations(
    corpus: Path, layout: str, recomputed: Recomputation = "none"
) -> tuple[Operations, dict[str, Any]]:
    """The counts of forward and backward of a batch, and the batch."""
    model, batch = small_model(corpus, layout), small_batch(layout, LENGTHS)
    recompute_activations(model.backbone, recomputed)
    loss_and_gradients(model, batch)  # gradients are there from now on
    with Operations() as operations:
        model(**batch).loss.backward()
    return operations, batch


@pytest.mark.parametrize("recomputed", ["none", "selective", "full"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_host_never_waits_for_the_device(corpus: Path, layout: str, recomputed: Recomputation) -> None:
    operations, _ = step_operations(corpus, layout, recomputed)
    assert not operations.waiting


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_head_sees_masked_positions_only(corpus: Path, layout: str) -> None:
    operations, batch = step_operations(corpus, layout)
    assert operations.head_rows == len(batch["positions"])


def test_a_chunk_of_logits_is_touched_as_little_as_can_be(corpus: Path) -> None:
    """The head needs three products, five operations on the whole chunk, and two on one column per row."""
    operations, batch = step_operations(corpus, "plain")
    assert len(batch["positions"]) // CHUNK == 1, "the other chunk is smaller, and not counted"
    whole, columns = ("amax", "add", "exp2_", "sum", "linalg_vector_norm"), ("gather", "scatter_add_")
    assert operations.on_logits == {"mm": 3} | dict.fromkeys(whole + columns, 1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_tensor_has_a_logit_for_each_position(corpus: Path, layout: str) -> None:
    operations, batch = step_operations(corpus, layout)
    assert 0 < operations.largest < batch["input_ids"].numel() * VOCABULARY
    assert operations.most_logits == CHUNK * VOCABULARY, "a chunk's, and never all masked positions'"


@pytest.mark.parametrize(
    ("layout", "recomputed", "most"),
    [
        ("plain", "none", 441),
        ("padded", "none", 466),
        ("annealed", "none", 465),
        ("packed", "none", 477),
        ("packed and annealed", "none", 513),
        ("plain", "selective", 516),
        ("plain", "full", 537),
    ],
)
def test_a_step_launches_no_more_kernels(
    corpus: Path, layout: str, recomputed: Recomputation, most: int
) -> None:
    """Counts three layers and a head with two chunks. If the count falls, lower `most` too."""
    operations, _ = step_operations(corpus, layout, recomputed)
    assert operations.counts.total() <= most


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_cuda_never_waits(corpus: Path, layout: str, dtype: str) -> None:
    model = small_model(corpus, layout, dtype=dtype).cuda()
    batch = small_batch(layout, LENGTHS)
    batch = {name: each.cuda() if isinstance(each, torch.Tensor) else each for name, each in batch.items()}
    loss_and_gradients(model, batch)  # what waits once, such as cuBLAS's start
    torch.cuda.set_sync_debug_mode("error")
    try:
        model(**batch).loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
