"""The processes that share out a list of independent work: one, or the ranks that a launcher started."""

import os
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class WorkGroup:
    """The ranks of a launcher. A single process joins no process group, and loads no torch for it."""

    def __init__(self) -> None:
        self.rank = int(os.environ.get("RANK", "0"))
        self.world_size = int(os.environ.get("WORLD_SIZE", "1"))
        self._ranks = None
        if self.world_size > 1:
            from mdmscale.parallel.ranks import initialise

            self._ranks = initialise()

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def on_first_rank(self, action: Callable[[], T]) -> T:
        """Run `action` on rank 0 while the others wait. Every rank gets its result or its error."""
        if self._ranks is None:
            return action()
        from mdmscale.parallel.collectives import on_first_rank

        return on_first_rank(self._ranks, action)

    def wait(self) -> None:
        """Return when every rank has got here."""
        self.gather(None)

    def gather(self, value: T) -> list[T]:
        """The (picklable) value of every rank, in order, on every rank."""
        if self._ranks is None:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def leave(self) -> None:
        """Leave the process group. Every rank calls this at its end."""
        if self._ranks is not None:
            from mdmscale.parallel.ranks import finalise

            finalise()
