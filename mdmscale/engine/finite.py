"""Whether values are finite: neither NaN nor infinite."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch


def all_finite(tensors: Iterable[torch.Tensor]) -> bool:
    """Whether every value of the floating tensors is finite. One reduction each, without a temporary copy."""
    floating = (each.detach() for each in tensors if each.is_floating_point() and each.numel())
    # The smallest and the largest value are NaN where any value is. All are launched before one is read.
    ends = [torch.stack(torch.aminmax(each)) for each in floating]
    return all(bool(each.isfinite().all()) for each in ends)


def tensors_in(values: Any) -> Iterator[torch.Tensor]:
    """The tensors in nested dictionaries and lists."""
    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, dict):
        for each in values.values():
            yield from tensors_in(each)
    elif isinstance(values, list | tuple):
        for each in values:
            yield from tensors_in(each)
