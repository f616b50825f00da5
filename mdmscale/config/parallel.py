"""The `parallel` section: how weights, optimizer state, matrices and sequences are split over ranks."""

from typing import Literal, Self

from pydantic import model_validator

from mdmscale.config.section import Section, key

Offload = Literal["none", "cpu", "nvme"]

# Elements: enough to hide the latency of a reduction, yet small for an 80 GB device. Overlap takes two.
CUDA_BUCKET_SIZE = 200_000_000
# Elements of a rank that are read from disk, stepped and written at a time, in four fp32 buffers.
SWAPPED_GROUP_SIZE, SWAPPED_GROUP_BUFFERS = 50_000_000, 4
SWAPPED_PARAMETERS = 5  # number that host memory holds, in use or in transfer; DeepSpeed's default


class ParallelSection(Section):
    zero_stage: Literal[0, 1, 2, 3] = key(
        1, "ZeRO stage: 0 replicates all; 1 shards the optimizer state, 2 also gradients, 3 also parameters"
    )
    tensor: int = key(1, "tensor-parallel size: adjacent ranks that split the matrices of the model", ge=1)
    sequence: int = key(
        1, "sequence-parallel size: ranks that split each sequence (Ulysses), for long sequences", ge=1
    )
    offload_optimizer: Offload = key(
        "none",
        "where optimizer state is stored: on the device (none), in host memory (cpu) or, with ZeRO-3, on "
        "disk (nvme); with cpu and nvme the optimizer steps on the host",
    )
    offload_parameters: Offload = key(
        "none",
        "ZeRO-3: where parameters are stored while not in use; same choices as offload_optimizer",
    )
    nvme_path: str | None = key(
        None, "folder on a fast disk of each node, which holds what is offloaded to nvme"
    )
    hpz_partition_size: int = key(
        1,
        "ZeRO-3: adjacent ranks that hold a second copy of the parameters together, such as a node; 1: none",
        ge=1,
    )
    quantized_weights: bool = key(
        False, "ZeRO-3: gather parameters in 8 bits, which rounds the weights that forward uses"
    )
    quantized_gradients: bool = key(False, "ZeRO-3: reduce gradients in 4 and 8 bits, which rounds them")
    overlap_comm: bool | None = key(None, "reduce gradients while backward still runs; null: only on CUDA")
    bucket_size: int | None = key(
        None, "elements in a gradient reduction; null: 200 million on CUDA, else DeepSpeed's default", ge=1
    )

    @property
    def swaps(self) -> bool:
        """Whether optimizer state is offloaded to disk (engine/nvme.py)."""
        return self.offload_optimizer == "nvme"

    @model_validator(mode="after")
    def _stage_has_what_is_asked(self) -> Self:
        problems = [
            f"{name} = {getattr(self, name)} needs zero_stage 3, which gathers parameters, "
            f"not {self.zero_stage}"
            for name, unset in (
                ("offload_parameters", "none"),
                ("hpz_partition_size", 1),
                ("quantized_weights", False),
                ("quantized_gradients", False),
            )
            if getattr(self, name) != unset and self.zero_stage != 3
        ]
        if self.offload_optimizer != "none" and self.zero_stage == 0:
            problems.append(
                f"offload_optimizer = {self.offload_optimizer} needs zero_stage 1, 2 or 3; stage 0 keeps "
                "everything on the device"
            )
        problems += self._nvme_problems()
        if self.hpz_partition_size > 1 and self.offload_parameters != "none":
            problems.append(
                f"hpz_partition_size = {self.hpz_partition_size} keeps a copy on the device, which "
                f"offload_parameters = {self.offload_parameters} is meant to avoid; choose one"
            )
        if self.tensor > 1:
            problems += [
                f"{name} = {getattr(self, name)} with tensor = {self.tensor}: DeepSpeed makes its groups "
                "of adjacent ranks, which hold parts of different matrices; set tensor to 1"
                for name, unset in (("hpz_partition_size", 1), ("quantized_gradients", False))
                if getattr(self, name) != unset
            ]
        if self.overlap_comm is not None and self.zero_stage == 0:
            problems.append("overlap_comm is set but zero_stage is 0, which reduces after backward")
        if self.bucket_size is not None and self.zero_stage == 0:
            problems.append("bucket_size is set but zero_stage is 0, which has no such buckets")
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _nvme_problems(self) -> list[str]:
        problems = []
        if self.offload_optimizer == "nvme" and self.zero_stage in (1, 2):
            problems.append(
                f"offload_optimizer = nvme needs zero_stage 3, not {self.zero_stage}: DeepSpeed swaps only "
                "the shards of stage 3; or choose cpu"
            )
        if self.offload_parameters == "nvme" and self.offload_optimizer != "nvme":
            problems.append(
                f"offload_parameters = nvme with offload_optimizer = {self.offload_optimizer}: "
                "optimizer state takes eight times what this saves; set offload_optimizer to nvme, too"
            )
        if self.swaps != (self.nvme_path is not None):
            problems.append(
                "nvme_path is not set: offload to nvme needs a folder on a disk of each node, such as /data"
                if self.swaps
                else f"nvme_path = {self.nvme_path!r} is set, but nothing is offloaded to nvme"
            )
        return problems
