"""A weight source that is a dictionary."""

import torch

from mdmscale.weights.tensor_source import TensorInfo


class Memory:
    """A TensorSource whose tensors are in memory."""

    def __init__(self, weights: dict[str, torch.Tensor]) -> None:
        self.weights = weights

    def tensors(self) -> dict[str, TensorInfo]:
        return {name: TensorInfo(tuple(tensor.shape), tensor.dtype) for name, tensor in self.weights.items()}

    def read(self, name: str) -> torch.Tensor:
        return self.weights[name]
