"""Sources around sources: other names, parts of fused tensors, another precision, more embedding rows."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from mdmscale.weights.tensor_source import TensorInfo, TensorSource

INPUT_EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
EMBEDDINGS = (INPUT_EMBEDDING, HEAD)


@dataclass(frozen=True)
class Part:
    """Where a tensor comes from: all of `name`, or its rows from `start` up to `stop`."""

    name: str
    start: int = 0
    stop: int | None = None


class RemappedSource:
    """Tensors under new names, each a part of a tensor of `source`. What no part names is left out."""

    def __init__(self, source: TensorSource, parts: Mapping[str, Part]) -> None:
        self._source = source
        self._parts = parts
        self._infos = source.tensors()
        self._last: tuple[str, torch.Tensor] | None = None  # q, k and v can be parts of one tensor, read once

    def tensors(self) -> dict[str, TensorInfo]:
        return {name: self._info(part) for name, part in self._parts.items()}

    def read(self, name: str) -> torch.Tensor:
        part = self._parts[name]
        if part.start == 0 and part.stop is None:
            return self._source.read(part.name)
        if self._last is None or self._last[0] != part.name:
            self._last = None  # frees it, so that never two are in memory
            self._last = part.name, self._source.read(part.name)
        return self._last[1][part.start : part.stop].clone()

    def _info(self, part: Part) -> TensorInfo:
        whole = self._infos[part.name]
        if part.start == 0 and part.stop is None:
            return whole
        num_rows = len(range(*slice(part.start, part.stop).indices(whole.shape[0])))
        return TensorInfo((num_rows, *whole.shape[1:]), whole.dtype)


class CastSource:
    """The same tensors in another floating-point precision."""

    def __init__(self, source: TensorSource, dtype: torch.dtype) -> None:
        self._source = source
        self._dtype = dtype

    def tensors(self) -> dict[str, TensorInfo]:
        return {name: TensorInfo(info.shape, self._dtype) for name, info in self._source.tensors().items()}

    def read(self, name: str) -> torch.Tensor:
        return self._source.read(name).to(self._dtype)


class MeanRowsSource:
    """Embeddings with `num_rows` rows, of which `mean_rows` are the mean of the first `num_trained` rows.

    A random row for an untrained token would make the first losses enormous. The mean row harms least.
    """

    def __init__(
        self, source: TensorSource, num_rows: int, mean_rows: Iterable[int], num_trained: int
    ) -> None:
        self._source = source
        self._num_rows = num_rows
        self._mean_rows = list(mean_rows)
        self._num_trained = num_trained

    def tensors(self) -> dict[str, TensorInfo]:
        infos = self._source.tensors()
        for name in infos.keys() & EMBEDDINGS:
            infos[name] = TensorInfo((self._num_rows, *infos[name].shape[1:]), infos[name].dtype)
        return infos

    def read(self, name: str) -> torch.Tensor:
        weight = self._source.read(name)  # [rows, hidden]
        if name not in EMBEDDINGS:
            return weight
        grown = weight.new_empty(self._num_rows, weight.shape[1])
        grown[: len(weight)] = weight
        grown[self._mean_rows] = weight[: self._num_trained].mean(dim=0, dtype=torch.float32).to(weight.dtype)
        return grown
