"""The ranks of a job: they join the process group and form a grid of data x sequence x tensor."""

import os
import socket
import warnings
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from mdmscale.parallel.op_build import load_op
from mdmscale.system.errors import UserError

# Long, because rank 0 may tokenise data or write files for a long time while the others wait.
COLLECTIVE_TIMEOUT = timedelta(hours=2)


@dataclass(frozen=True)
class Ranks:
    """This process among the job's ranks.

    The axes are dp (data), sp (sequence) and tp (tensor). Ranks that share a model (tp) are adjacent, because
    they communicate the most. Then come the ranks that share a sequence (sp). Data-parallel ranks are
    furthest apart. A group of one rank is None, because it has no one to communicate with.
    """

    rank: int
    world_size: int
    device: torch.device
    tp_size: int = 1  # ranks over which a model is split
    sp_size: int = 1  # ranks over which a sequence is split
    mesh: DeviceMesh | None = None  # the axes of more than one rank
    replica_group: dist.ProcessGroup | None = None  # ranks with the same weights, dp x sp; None: all ranks

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def dp_size(self) -> int:
        return self.world_size // (self.tp_size * self.sp_size)

    @property
    def dp_rank(self) -> int:
        return self._rank_along("dp")

    @property
    def sp_rank(self) -> int:
        return self._rank_along("sp")

    @property
    def tp_rank(self) -> int:
        return self._rank_along("tp")

    @property
    def sp_group(self) -> dist.ProcessGroup | None:
        return self._group_along("sp")

    @property
    def tp_group(self) -> dist.ProcessGroup | None:
        return self._group_along("tp")

    @property
    def speaks_for_slice(self) -> bool:
        """Whether sums over all ranks include this rank's masked positions. Its tp group has the same."""
        return self.tp_rank == 0

    @property
    def speaks_for_samples(self) -> bool:
        """Whether sums over all ranks include this rank's samples. Its sp and tp groups have the same."""
        return self.tp_rank == 0 and self.sp_rank == 0

    def sum_over_sequence(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum over the ranks that share this rank's samples, in place."""
        if self.sp_group is not None:
            dist.all_reduce(tensor, group=self.sp_group)
        return tensor

    def _rank_along(self, axis: str) -> int:
        return self.mesh.get_local_rank(axis) if self._has(axis) else 0  # type: ignore[union-attr]

    def _group_along(self, axis: str) -> dist.ProcessGroup | None:
        return self.mesh.get_group(axis) if self._has(axis) else None  # type: ignore[union-attr]

    def _has(self, axis: str) -> bool:
        return self.mesh is not None and axis in (self.mesh.mesh_dim_names or ())


def initialise(tp_size: int = 1, sp_size: int = 1) -> Ranks:
    """Join the process group that the launcher describes. Without a launcher, create one of this process.

    The backend is NCCL on CUDA devices. On the CPU it is gloo, and the ranks of a node share its cores
    equally. Every rank must call it. `tp_size * sp_size` must divide the number of ranks.

    Raises:
        UserError: if the launcher's port is in use, or DeepSpeed's op for the CPU cannot be built.
    """
    if "RANK" not in os.environ:
        # Port 0: torch takes a free one.
        alone = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 0}
        os.environ.update({name: str(value) for name, value in alone.items()})
    device = _device(int(os.environ.get("LOCAL_RANK", "0")))
    # DeepSpeed calls the deprecated function. A user can do nothing about it.
    warnings.filterwarnings("ignore", message=".*all_gather_into_tensor", category=FutureWarning)
    if not dist.is_initialized():
        load_op("ShareMemCommBuilder", "CPU communication op")
        _join("nccl" if device.type == "cuda" else "gloo")
    return _arrange(device, tp_size, sp_size)


def _join(backend: str) -> None:
    import deepspeed

    try:
        deepspeed.init_distributed(dist_backend=backend, timeout=COLLECTIVE_TIMEOUT, verbose=False)
    except dist.DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        port = os.environ.get("MASTER_PORT")
        raise UserError(
            f"MASTER_PORT = {port}: another process of this machine listens there, such as another run; give "
            f"the launcher a free port: deepspeed --master_port {_free_port()}, torchrun --master-port N"
        ) from None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def finalise(wait: bool = True) -> None:
    """Leave the process group, if this process has joined one. With `wait`, first wait for all ranks.

    gloo may abort a rank whose peers have already left, so ranks wait for each other. After an error `wait`
    must be False, because the other ranks may never call this.
    """
    if dist.is_initialized():
        if wait:
            dist.barrier()
        dist.destroy_process_group()


def _device(local_rank: int) -> torch.device:
    if torch.cuda.is_available():
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
        return device
    if "OMP_NUM_THREADS" not in os.environ:
        # the number of ranks on this node, under the names of torchrun and of the deepspeed launcher
        local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or 1)
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_ranks))
    return torch.device("cpu")


def _arrange(device: torch.device, tp_size: int, sp_size: int) -> Ranks:
    """The job's ranks as a grid. An axis of one rank gets no groups: creating a group involves all ranks."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    dp_size, rest = divmod(world_size, tp_size * sp_size)
    assert rest == 0, f"{world_size} ranks do not make {tp_size} x {sp_size}"
    axes = {name: size for name, size in (("dp", dp_size), ("sp", sp_size), ("tp", tp_size)) if size > 1}
    mesh, replica_group = None, None
    if axes:
        mesh = init_device_mesh(device.type, tuple(axes.values()), mesh_dim_names=tuple(axes))
    if tp_size > 1:
        replicas = torch.arange(world_size).view(-1, tp_size).T.tolist()  # [tp, dp x sp]
        replica_group, _ = dist.new_subgroups_by_enumeration(replicas)
    return Ranks(rank, world_size, device, tp_size, sp_size, mesh, replica_group)
