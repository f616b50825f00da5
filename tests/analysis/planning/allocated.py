"""Measures what torch really allocates: the bytes kept for backward, and the peak of live bytes."""

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def storages(tree: Any) -> list[torch.UntypedStorage]:
    """The storages of all tensors in nested values."""
    return [each.untyped_storage() for each in tree_leaves(tree) if isinstance(each, torch.Tensor)]


class Saved(saved_tensors_hooks):
    """Counts the storages that autograd keeps for backward, except those of `parameters`."""

    def __init__(self, parameters: Iterable[torch.Tensor]) -> None:
        self.known = {each.untyped_storage().data_ptr() for each in parameters}
        self.kept: dict[int, torch.Tensor] = {}  # alive, so that no address is used twice
        super().__init__(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor:
        address = tensor.untyped_storage().data_ptr()
        if address not in self.known:
            self.kept[address] = tensor.detach()
        return tensor

    def __enter__(self) -> "Saved":
        super().__enter__()
        return self

    @property
    def num_bytes(self) -> int:
        return sum(each.untyped_storage().nbytes() for each in self.kept.values())


class Peak(TorchDispatchMode):
    """Measures the peak of live bytes in storages that are created in the block."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.most = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = storages((args, kwargs))
        made = func(*args, **(kwargs or {}))
        for storage in storages(made):
            if not any(storage is each for each in given):
                self._count(storage)
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        if id(storage) in self.seen:
            return
        self.seen.add(id(storage))
        self.alive += storage.nbytes()
        self.most = max(self.most, self.alive)
        weakref.finalize(storage, self._free, id(storage), storage.nbytes())

    def _free(self, key: int, num_bytes: int) -> None:
        self.seen.discard(key)
        self.alive -= num_bytes
