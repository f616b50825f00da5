"""What every conversion reads from: named tensors whose shapes are known before any of them is loaded.

A folder of weights is such a source, and so is a DeepSpeed checkpoint. A change of names, rows or precision
is a source around another one. A conversion writes the outermost source, tensor by tensor.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch


@dataclass(frozen=True)
class TensorInfo:
    """Shape and dtype of a tensor, which need not be in memory."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        return self.num_elements * self.dtype.itemsize


class TensorSource(Protocol):
    """Named tensors that are loaded one at a time."""

    def tensors(self) -> dict[str, TensorInfo]:
        """Every tensor by name, in the order that is cheapest to read.

        Raises:
            UserError: naming the file that is missing or damaged.
        """
        ...

    def read(self, name: str) -> torch.Tensor:
        """The tensor of that name, on the CPU, contiguous, as `tensors` describes it.

        Raises:
            UserError: naming the file that is missing or damaged.
        """
        ...
