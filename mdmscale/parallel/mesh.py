"""The ranks of a job as a grid: data x sequence x tensor, with the groups that each axis talks in.

Tensor-parallel neighbours are adjacent ranks, as they talk the most; then come the ranks that share a
sequence; data-parallel ranks are furthest apart. To DeepSpeed the sequence axis is part of data parallelism:
such ranks hold the same weights, each sees a slice of the same rows, and their gradients are averaged like
all others.
"""

from dataclasses import replace

import torch.distributed as dist

from mdmscale.parallel.ranks import Ranks


def arrange(ranks: Ranks, tensor: int, sequence: int) -> Ranks:
    """Arrange the job's ranks; every rank calls it. `tensor * sequence` must divide the world size."""
    world_size, inner = ranks.world_size, tensor * sequence
    assert world_size % inner == 0, f"{world_size} ranks do not make {tensor} x {sequence}"
    blocks = range(0, world_size, inner)
    tensor_sets = [list(range(first, first + tensor)) for first in range(0, world_size, tensor)]
    sequence_sets = [
        list(range(block + place, block + inner, tensor)) for block in blocks for place in range(tensor)
    ]
    replica_sets = [list(range(place, world_size, tensor)) for place in range(tensor)]
    return replace(
        ranks,
        tensor=tensor,
        sequence=sequence,
        tensor_group=_group_of(ranks.rank, tensor_sets) if tensor > 1 else None,
        sequence_group=_group_of(ranks.rank, sequence_sets) if sequence > 1 else None,
        replica_group=_group_of(ranks.rank, replica_sets) if tensor > 1 else None,
    )


def _group_of(rank: int, sets: list[list[int]]) -> dist.ProcessGroup:
    """The group of the set that `rank` is in; all ranks must make all groups."""
    groups = [dist.new_group(members) for members in sets]
    return next(group for members, group in zip(sets, groups, strict=True) if rank in members)


class ModelParallelUnit:
    """The grid in the words that DeepSpeed asks in (its `mpu`): only the tensor axis is model parallelism."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks

    def get_model_parallel_rank(self) -> int:
        return self.ranks.tensor_rank

    def get_model_parallel_world_size(self) -> int:
        return self.ranks.tensor

    def get_model_parallel_group(self) -> dist.ProcessGroup | None:
        return self.ranks.tensor_group

    def get_data_parallel_rank(self) -> int:
        return self.ranks.rank // self.ranks.tensor

    def get_data_parallel_world_size(self) -> int:
        return self.ranks.world_size // self.ranks.tensor

    def get_data_parallel_group(self) -> dist.ProcessGroup | None:
        return self.ranks.replica_group
