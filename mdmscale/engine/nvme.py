"""Optimizer state and parameters on a node's NVMe disk: what DeepSpeed is told, and how runs go on from it.

DeepSpeed swaps sub-groups of its ZeRO-3 shards between files and host memory as they take their step. Its own
checkpoints of such a run cannot be loaded again: they lack the optimizer's count of steps and the sub-groups
too small to be swapped. Here the swap files are mapped into memory while a checkpoint is written or read, so
that it is the same as any other run's: it resumes bit for bit, on other ranks, and with or without NVMe.
"""

import fcntl
import hashlib
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from mdmscale.config.parallel import SWAPPED_GROUP_BUFFERS, SWAPPED_GROUP_SIZE, SWAPPED_PARAMETERS
from mdmscale.config.run import RunConfig
from mdmscale.parallel.collectives import on_every_rank
from mdmscale.parallel.ranks import Ranks
from mdmscale.system.errors import UserError


def swap_folder(config: RunConfig, rank: int) -> Path:
    """Where a rank's swap files lie: a folder for each run folder and node, so that jobs may share a disk."""
    assert config.parallel.nvme_path is not None  # config_parallel.py
    run = Path(config.run.output_dir, config.run.name).resolve()
    digest = hashlib.sha256(str(run).encode()).hexdigest()[:8]
    return Path(config.parallel.nvme_path) / f"{run.name}-{digest}.{socket.gethostname()}" / f"rank-{rank}"


def check_available() -> None:
    """Check that DeepSpeed can swap.

    Raises:
        UserError: naming what to install.
    """
    from deepspeed.ops.op_builder import AsyncIOBuilder

    if not AsyncIOBuilder().is_compatible(verbose=False):
        raise UserError(
            "parallel.offload_optimizer = nvme: DeepSpeed's asynchronous I/O needs libaio with headers and "
            "a C++ compiler; install libaio-dev (Debian, Ubuntu) or libaio-devel (Red Hat)"
        )


@contextmanager
def own_folder(config: RunConfig, ranks: Ranks) -> Iterator[None]:
    """Hold this rank's swap folder, empty at first; only an empty lock file stays, however the run ends.

    What a killed run left on this node goes first, of ranks that are no more, too. Every rank calls it.

    Raises:
        UserError: where the folder cannot be written to, or the run already trains on this node.
    """
    if not config.parallel.swaps:
        yield
        return
    folder = swap_folder(config, ranks.rank)
    is_first = int(os.environ.get("LOCAL_RANK", "0")) == 0  # on this node
    dist.barrier()  # every rank has let go of what these processes trained before
    with ExitStack() as held:

        def hold() -> None:
            try:
                held.enter_context(_held(folder, clear=is_first))
            except BlockingIOError:
                raise UserError(
                    f"{folder.parent}: this run is training on this node already; stop it, or choose another "
                    "run.name"
                ) from None
            except OSError as error:
                raise UserError(f"parallel.nvme_path = {config.parallel.nvme_path!r}: {error}") from None

        on_every_rank(ranks, lambda: hold() if is_first else None)
        on_every_rank(ranks, lambda: None if is_first else hold())
        yield


@contextmanager
def _held(folder: Path, clear: bool) -> Iterator[None]:
    """A new `folder`, removed at the end. With `clear`, all that its node has for the run is removed first.

    Every rank shares in the node's lock, which ends with its last holder: only then may another run clear.
    Its file stays, or one process could lock it as another removes it.
    """
    node = folder.parent
    node.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(f"{node}.lock", os.O_RDWR | os.O_CREAT, 0o666)  # NFS locks only what may be written to
    try:
        if clear:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if node.exists():
                shutil.rmtree(node)
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        folder.mkdir(parents=True)
        try:
            yield
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):  # other ranks of this node have not ended yet
                node.rmdir()
    finally:
        os.close(lock)


def offload_options(config: RunConfig, rank: int, largest: int) -> dict[str, Any]:
    """What zero_optimization gains. `largest`: elements of a rank's shard of the largest parameter."""
    path = str(swap_folder(config, rank))
    options: dict[str, Any] = {
        "offload_optimizer": {"device": "nvme", "nvme_path": path, "buffer_count": SWAPPED_GROUP_BUFFERS},
        "sub_group_size": SWAPPED_GROUP_SIZE,
    }
    if config.parallel.offload_parameters == "nvme":
        options["offload_param"] = {
            "device": "nvme",
            "nvme_path": path,
            "buffer_count": SWAPPED_PARAMETERS,
            "buffer_size": SWAPPED_GROUP_SIZE + largest,  # a sub-group comes through one
            "max_in_cpu": 0,
        }
        # Its reading ahead takes a parameter that is used twice for two, as the head's is, and fails.
        options["stage3_prefetch_bucket_size"] = 0
    return options


@contextmanager
def mapped(optimizer: Any) -> Iterator[None]:
    """DeepSpeed's ZeRO-3 `optimizer` as if nothing were swapped: its shards are mapped files.

    Does nothing for an optimizer that does not swap.
    """
    if not getattr(optimizer, "swap_optimizer", False):
        yield
        return
    swapper = optimizer.optimizer_swapper
    for swapped in swapper.swap_params_info.values():
        for each in swapped.tensors:
            each.compute_tensor.data = _map_file(swapper, each.swap_path, swapped.numel())
    optimizer.swap_optimizer = False  # else DeepSpeed would swap on its own, and copy the files as they are
    try:
        yield
    finally:
        optimizer.swap_optimizer = True
        for shard in optimizer.fp32_partitioned_groups_flat:
            swapper._get_param_swap_info(shard)  # takes note of moments that were made meanwhile
        for swapped in swapper.swap_params_info.values():
            swapped.release_memory()


def zero_moment(optimizer: Any, shard: torch.Tensor, kind: str) -> torch.Tensor:
    """Zeros for one of Adam's moments of a `mapped` shard: in a file of its own if the shard is in one."""
    swapper = getattr(optimizer, "optimizer_swapper", None)
    if swapper is None or shard.ds_id not in swapper.swap_params_info:  # type: ignore[attr-defined]
        return torch.zeros_like(shard)
    path = Path(swapper.swap_folder) / f"{kind}-{shard.ds_id}.tensor.swp"  # type: ignore[attr-defined]
    return _map_file(swapper, path, shard.numel()).zero_()  # as DeepSpeed names it


def _map_file(swapper: Any, path: str | Path, num_elements: int) -> torch.Tensor:
    """The values of a file, which is made where there is none; as long as DeepSpeed will read of it."""
    length = swapper._io_aligned_numel(num_elements)
    with open(path, "ab") as file:  # room for all of it, or writing to the map would end the process
        try:
            os.posix_fallocate(file.fileno(), 0, length * swapper.dtype.itemsize)
        except OSError as error:
            raise UserError(f"parallel.nvme_path: {path}: {error.strerror}") from None
    return torch.from_file(str(path), shared=True, size=length, dtype=swapper.dtype)[:num_elements]
