"""Optimizer state and parameters on a node's NVMe disk: their folder, and how checkpoints include them.

During the optimizer's step DeepSpeed swaps sub-groups of its ZeRO-3 shards between files and host memory. It
cannot load its own checkpoints of such a run: they lack the optimizer's step count and the sub-groups that
are too small to be swapped. Here the swap files are mapped into memory while a checkpoint is written or read.
So the checkpoint is like that of any other run: it resumes bit for bit, on other ranks, and with or without
NVMe.
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

from mdmscale.config.run import RunConfig
from mdmscale.engine import private
from mdmscale.parallel.collectives import on_every_rank
from mdmscale.parallel.ranks import Ranks
from mdmscale.system.errors import UserError


def swap_folder(config: RunConfig, rank: int) -> Path:
    """The folder of a rank's swap files. Each run folder and node has its own, so jobs may share a disk."""
    assert config.parallel.nvme_path is not None  # config/parallel.py checks this
    run = Path(config.run.output_dir, config.run.name).resolve()
    digest = hashlib.sha256(str(run).encode()).hexdigest()[:8]
    return Path(config.parallel.nvme_path) / f"{run.name}-{digest}.{socket.gethostname()}" / f"rank-{rank}"


@contextmanager
def own_folder(config: RunConfig, ranks: Ranks) -> Iterator[None]:
    """Create this rank's swap folder empty, and remove it when the block ends. An empty lock file remains.

    First it removes what a killed run left on this node, including files of ranks that this job does not
    have. Every rank calls this.

    Raises:
        UserError: if the folder cannot be written, or the run already trains on this node.
    """
    if not config.parallel.swaps:
        yield
        return
    folder = swap_folder(config, ranks.rank)
    is_first = int(os.environ.get("LOCAL_RANK", "0")) == 0  # on this node
    dist.barrier()  # until no rank holds files of an earlier run of these processes
    with ExitStack() as held:

        def hold() -> None:
            try:
                held.enter_context(_held(folder, clear=is_first))
            except BlockingIOError:
                raise UserError(
                    f"{folder.parent}: this run is already training on this node; stop it, or choose another "
                    "run.name"
                ) from None
            except OSError as error:
                raise UserError(f"parallel.nvme_path = {config.parallel.nvme_path!r}: {error}") from None

        on_every_rank(ranks, lambda: hold() if is_first else None)
        on_every_rank(ranks, lambda: None if is_first else hold())
        yield


@contextmanager
def _held(folder: Path, clear: bool) -> Iterator[None]:
    """Create `folder`, and remove it at the end. With `clear`, first remove all the run's files on this node.

    All ranks of a node share a lock. Another process may clear only after the last rank has released it. The
    lock file is never removed: otherwise two processes could each lock a different file of that name.
    """
    node = folder.parent
    node.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(f"{node}.lock", os.O_RDWR | os.O_CREAT, 0o666)  # NFS locks only writable files
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
            with suppress(OSError):  # other ranks of this node still have files in it
                node.rmdir()
    finally:
        os.close(lock)


@contextmanager
def mapped(optimizer: Any) -> Iterator[None]:
    """Within the block, DeepSpeed's `optimizer` holds swapped shards as mapped files, not as swapped ones.

    It does nothing for an optimizer that does not swap.
    """
    if not private.is_swapping(optimizer):
        yield
        return
    for each in private.swapped_tensors(optimizer):
        each.tensor.data = _map_file(optimizer, each.path, each.num_elements)
    private.set_swapping(optimizer, False)  # otherwise DeepSpeed copies the files, which may be outdated
    try:
        yield
    finally:
        private.set_swapping(optimizer, True)
        private.release_swapped(optimizer)


def zero_moment(optimizer: Any, shard: torch.Tensor, kind: str) -> torch.Tensor:
    """Zeros for one of Adam's moments of a `mapped` shard. They are in a file if the shard is in a file."""
    path = private.moment_file(optimizer, shard, kind)
    return torch.zeros_like(shard) if path is None else _map_file(optimizer, path, shard.numel()).zero_()


def _map_file(optimizer: Any, path: Path, num_elements: int) -> torch.Tensor:
    """Map a file into memory, creating it if needed, with the length that DeepSpeed later reads."""
    length, dtype = private.elements_in_file(optimizer, num_elements), private.dtype_in_file(optimizer)
    with open(path, "ab") as file:  # reserve the space: writing to a map beyond it kills the process
        try:
            os.posix_fallocate(file.fileno(), 0, length * dtype.itemsize)
        except OSError as error:
            raise UserError(f"parallel.nvme_path: {path}: {error.strerror}") from None
    return torch.from_file(str(path), shared=True, size=length, dtype=dtype)[:num_elements]
