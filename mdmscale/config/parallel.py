"""The `parallel` section: how weights, optimizer state, matrices and sequences are split over ranks."""

from typing import Literal, Self

from pydantic import model_validator

from mdmscale.config.section import Section, key

Offload = Literal["none", "cpu", "nvme"]

# Elements: enough to hide a reduction's start-up, and little beside an 80 GB device, twice with overlap.
CUDA_BUCKET_SIZE = 200_000_000
# Elements of a rank that are read from disk, stepped and written at a time: four fp32 buffers of them.
SWAPPED_GROUP_SIZE, SWAPPED_GROUP_BUFFERS = 50_000_000, 4
SWAPPED_PARAMETERS = 5  # that may be in host memory or on their way; DeepSpeed's default


class ParallelSection(Section):
    zero_stage: Literal[0, 1, 2, 3] = key(
        1, "ZeRO stage: 0 replicates, 1 shards the optimizer, 2 also gradients, 3 also parameters"
    )
    tensor: int = key(1, "adjacent ranks that a model's matrices are split over", ge=1)
    sequence: int = key(1, "ranks that each sequence is split over (Ulysses), for long ones", ge=1)
    offload_optimizer: Offload = key(
        "none",
        "where optimizer state lives: on the device (none), in host memory (cpu) or, ZeRO-3 only, on disk "
        "(nvme); it steps on the host then",
    )
    offload_parameters: Offload = key("none", "ZeRO-3: where parameters rest between their uses; as above")
    nvme_path: str | None = key(None, "folder on a fast disk of each node, for what is offloaded to nvme")
    hpz_partition_size: int = key(
        1,
        "ZeRO-3: keep a second copy of the parameters among so many near ranks; the ranks of a node, say",
        ge=1,
    )
    quantized_weights: bool = key(False, "ZeRO-3: gather parameters in 8 bits; rounds what forward sees")
    quantized_gradients: bool = key(False, "ZeRO-3: reduce gradients in 4 and 8 bits; rounds them")
    overlap_comm: bool | None = key(None, "reduce gradients while backward goes on; null: on CUDA")
    bucket_size: int | None = key(
        None, "elements of a gradient reduction; null: 200 million on CUDA, else DeepSpeed's default", ge=1
    )

    @property
    def swaps(self) -> bool:
        """Whether anything is on disk; nvme.py."""
        return self.offload_optimizer == "nvme"

    @model_validator(mode="after")
    def _stage_has_what_is_asked(self) -> Self:
        problems = [
            f"{name} = {getattr(self, name)} needs zero_stage 3, which has parameters to gather, "
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
                "all on the device"
            )
        problems += self._nvme_problems()
        if self.hpz_partition_size > 1 and self.offload_parameters != "none":
            problems.append(
                f"hpz_partition_size = {self.hpz_partition_size} keeps a copy on the device, which "
                f"offload_parameters = {self.offload_parameters} is there to avoid; choose one"
            )
        if self.tensor > 1:
            problems += [
                f"{name} = {getattr(self, name)} with tensor = {self.tensor}: DeepSpeed makes its groups of "
                "adjacent ranks, which hold parts of different matrices; set tensor to 1"
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
                f"offload_optimizer = nvme needs zero_stage 3, not {self.zero_stage}: DeepSpeed swaps its "
                "shards only; or choose cpu"
            )
        if self.offload_parameters == "nvme" and self.offload_optimizer != "nvme":
            problems.append(
                f"offload_parameters = nvme with offload_optimizer = {self.offload_optimizer}: its optimizer "
                "state takes eight times what this saves; set offload_optimizer to nvme, too"
            )
        if self.swaps != (self.nvme_path is not None):
            problems.append(
                "nvme_path is not set: offload to nvme needs a folder on a disk of each node, /scratch, say"
                if self.swaps
                else f"nvme_path = {self.nvme_path!r} is set, but nothing is offloaded to nvme"
            )
        return problems
