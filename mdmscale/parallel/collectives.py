"""Small collective operations: sum and ask over ranks, act on rank 0 for all, raise one's error on all."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from mdmscale.parallel.ranks import Ranks
from mdmscale.system.errors import UserError

T = TypeVar("T")


def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Sum over ranks, in place."""
    dist.all_reduce(tensor)
    return tensor


def on_all_ranks(ranks: Ranks, holds: bool) -> bool:
    """Whether something holds on every rank. Every rank gets the same answer."""
    num_others = all_reduce_sum(torch.tensor(int(not holds), device=ranks.device))
    return int(num_others) == 0


def on_first_rank(ranks: Ranks, action: Callable[[], T]) -> T:
    """Run `action` on rank 0 while the others wait. Every rank gets its (picklable) result or its error.

    Raises:
        UserError: on every rank, if `action` raised one.
        RuntimeError: on the other ranks, if `action` raised any other error.
    """
    message: list[Any] = [None]
    failure: BaseException | None = None
    if ranks.is_first:
        try:
            message = [("result", action())]
        except UserError as error:
            message = [("user error", error.problems)]
        except BaseException as error:  # after any error the other ranks must stop waiting
            failure = error
            message = [("failure", repr(error))]
    dist.broadcast_object_list(message, src=0)
    if failure is not None:
        raise failure
    match message[0]:
        case ("result", result):
            return result
        case ("user error", problems):
            raise UserError(*problems)
        case (_, text):
            raise RuntimeError(f"rank 0 failed: {text}")
    raise AssertionError(message)


def on_every_rank(ranks: Ranks, action: Callable[[], T]) -> T:
    """Run `action`, which must not communicate, on every rank. If it fails on any rank, all ranks raise.

    Raises:
        UserError: with the problems of all ranks. The same problem is listed once.
    """
    result, problems = None, []
    try:
        result = action()
    except UserError as error:
        problems = error.problems
    gathered: list[Any] = [None] * ranks.world_size
    dist.all_gather_object(gathered, problems)
    if any(gathered):
        raise UserError(*dict.fromkeys(problem for part in gathered for problem in part))
    return cast(T, result)
