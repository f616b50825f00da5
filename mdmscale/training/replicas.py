"""Finds ranks whose weights have drifted apart, as those of a rank with corrupt memory do.

At ZeRO-0 every rank holds the whole model and updates it by itself, with the same gradients. One wrong bit on
one rank is then never corrected, and spoils the gradients of all ranks from there on.
"""

import socket
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist

from mdmscale.parallel.ranks import Ranks

# An integer type as wide as a parameter's: its elements are compared as bits, NaN too.
_BITS = {2: torch.int16, 4: torch.int32}
_FACTOR = 0x5851F42D4C957F2D  # odd, so that no tensor's sum is lost when the next one is added


class ReplicasDiffer(RuntimeError):
    """Ranks that should hold the same weights do not. Its text names them."""


def check_replicas(parameters: Iterable[torch.Tensor], step: int, ranks: Ranks) -> None:
    """Compare the weights of all ranks that hold the same ones, after step `step`. Every rank calls this.

    A rank sends 8 bytes, and reads its weights once.

    Raises:
        ReplicasDiffer: on every rank, naming the ranks that differ from most of the others, and their hosts.
    """
    mine = checksum(parameters)[None]
    gathered = [torch.empty_like(mine) for _ in range(ranks.world_size)]
    dist.all_gather(gathered, mine)
    problem = difference(torch.cat(gathered).tolist(), ranks.tp_size)
    if problem is None:
        return
    strangers, others = problem
    hosts: list[Any] = [None] * ranks.world_size
    dist.all_gather_object(hosts, socket.gethostname())
    named = ", ".join(f"rank {rank} on {hosts[rank]}" for rank in strangers)
    raise ReplicasDiffer(
        f"after step {step} the weights of {named} differ from {others}, so memory or a device may be "
        "faulty; leave that host out, and give the same command again, which continues from the newest "
        "checkpoint"
    )


def checksum(parameters: Iterable[torch.Tensor]) -> torch.Tensor:
    """A checksum of the bits of all `parameters`, int64 [], which any change of one element changes."""
    total: torch.Tensor | int = 0
    for parameter in parameters:
        bits = parameter.detach().view(_BITS[parameter.element_size()])
        total = total * _FACTOR + bits.sum(dtype=torch.int64)
    assert isinstance(total, torch.Tensor)
    return total


def difference(checksums: list[int], tp_size: int) -> tuple[list[int], str] | None:
    """The ranks that differ from most ranks with the same part of the model, and those in words.

    Without a majority all of them are named. None if there is no difference. `checksums` is in the order of
    ranks, in which tensor ranks are adjacent.
    """
    strangers, has_majority = [], True
    for part in range(tp_size):
        members = range(part, len(checksums), tp_size)
        (usual, count), *_ = Counter(checksums[rank] for rank in members).most_common(1)
        if 2 * count > len(members):
            strangers += [rank for rank in members if checksums[rank] != usual]
        else:
            strangers, has_majority = strangers + list(members), False
    if not strangers:
        return None
    return sorted(strangers), "those of the other ranks" if has_majority else "each other, without a majority"
