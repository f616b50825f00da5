"""Ranks and devices: joining the group, small reductions, rank 0 acting for all, and requests to stop."""

import os
import signal
import socket
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from mdmscale.system.errors import UserError

T = TypeVar("T")

# Rank 0 may tokenise or write for long while the others wait.
COLLECTIVE_TIMEOUT = timedelta(hours=2)


@dataclass(frozen=True)
class Ranks:
    """This process among the job's."""

    rank: int
    world_size: int
    device: torch.device
    # Their grid of data x sequence x tensor (mesh.py). A group of one rank is None: nobody to talk to.
    tensor: int = 1  # ranks that a model is split over
    sequence: int = 1  # ranks that a sequence is split over
    tensor_group: dist.ProcessGroup | None = None
    sequence_group: dist.ProcessGroup | None = None
    replica_group: dist.ProcessGroup | None = None  # ranks with the same weights; None: all ranks

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def num_data_ranks(self) -> int:
        return self.world_size // (self.tensor * self.sequence)

    @property
    def data_rank(self) -> int:
        return self.rank // (self.tensor * self.sequence)

    @property
    def sequence_rank(self) -> int:
        return self.rank // self.tensor % self.sequence

    @property
    def tensor_rank(self) -> int:
        return self.rank % self.tensor

    @property
    def speaks_for_slice(self) -> bool:
        """Whether sums over all ranks count this rank's masked positions: tensor neighbours have the same."""
        return self.tensor_rank == 0

    @property
    def speaks_for_samples(self) -> bool:
        """Whether sums over all ranks count this rank's samples: its neighbours in the grid have the same."""
        return self.tensor_rank == 0 and self.sequence_rank == 0

    def sum_over_sequence(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum over the ranks that share this rank's samples, in place."""
        if self.sequence_group is not None:
            dist.all_reduce(tensor, group=self.sequence_group)
        return tensor


def initialise() -> Ranks:
    """Join the process group that the launcher describes, or make one of this process alone.

    NCCL on CUDA devices, else gloo on the CPU with the cores shared out among the node's ranks.
    """
    if "RANK" not in os.environ:
        alone = {
            "RANK": 0,
            "WORLD_SIZE": 1,
            "LOCAL_RANK": 0,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": _free_port(),
        }
        os.environ.update({name: str(value) for name, value in alone.items()})
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if torch.cuda.is_available():
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
        if "OMP_NUM_THREADS" not in os.environ:
            # torchrun's name for it, and the deepspeed launcher's
            local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or 1)
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_ranks))
    # DeepSpeed calls it; nothing that a user could mend.
    warnings.filterwarnings("ignore", message=".*all_gather_into_tensor", category=FutureWarning)
    if not dist.is_initialized():
        import deepspeed

        backend = "nccl" if device.type == "cuda" else "gloo"
        deepspeed.init_distributed(dist_backend=backend, timeout=COLLECTIVE_TIMEOUT, verbose=False)
    return Ranks(dist.get_rank(), dist.get_world_size(), device)


def finalise(wait: bool = True) -> None:
    """Leave the process group, if one was joined; with `wait`, when all ranks have come to this point.

    gloo may abort a rank whose peers have left already. After an error nobody may wait for the others.
    """
    if dist.is_initialized():
        if wait:
            dist.barrier()
        dist.destroy_process_group()


def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Sum over ranks, in place."""
    dist.all_reduce(tensor)
    return tensor


def on_first_rank(ranks: Ranks, action: Callable[[], T]) -> T:
    """Run `action` on rank 0 while the others wait; every rank gets its (picklable) result or its error.

    Raises:
        UserError: on every rank, where `action` raised one.
        RuntimeError: on the other ranks, where `action` failed otherwise.
    """
    message: list[Any] = [None]
    failure: BaseException | None = None
    if ranks.is_first:
        try:
            message = [("result", action())]
        except UserError as error:
            message = [("user error", error.problems)]
        except BaseException as error:  # the others must not wait for ever, whatever went wrong here
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
    """Run `action`, which must not communicate, on every rank; all raise what any of them raised.

    Raises:
        UserError: with the problems of every rank that had some.
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


class StopRequest:
    """Whether someone asked this run to stop early: a signal, or a file named `stop` in the run folder."""

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

    def __init__(self, run_folder: Path) -> None:
        self.file = run_folder / "stop"
        self.signalled = False

    def __enter__(self) -> "StopRequest":
        self._previous = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        self.signalled = True
        signal.signal(number, self._previous[signal.Signals(number)])  # a second one acts at once

    def seen(self) -> bool:
        """On this rank alone; the answer is reduced with the step's other scalars."""
        return self.signalled or self.file.exists()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
