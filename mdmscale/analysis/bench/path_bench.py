"""Seconds and memory of loss paths.

The caller runs the paths in turn, so that fluctuations of the machine affect all paths alike.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Literal

import torch

from mdmscale.analysis.bench.paths import LossPath, set_attention
from mdmscale.analysis.bench.work import Sizes
from mdmscale.data.batch import Batch
from mdmscale.models.mdm import MaskedDiffusionModel
from mdmscale.system.allocator import keep_freed_memory, process_memory, return_freed_memory

FreedMemory = Literal["own", "kept", "returned"]


@dataclass
class PathResult:
    """Measurements of a path: forward and backward, in each round."""

    path: LossPath
    num_tokens: int  # clean tokens of a step; the two rows of a pair count once
    num_masked: int  # masked positions in all rows
    num_row_tokens: int  # tokens in all rows, without padding
    num_position_pairs: int  # pairs of positions that attention computes
    loss: float = 0.0
    memory: int | None = None  # peak bytes of a step above those before it; None: cannot be measured here
    seconds: list[float] = field(default_factory=list)

    @property
    def tokens_per_second(self) -> float:
        return self.num_tokens / median(self.seconds)


class PathBench:
    """Runs and measures the steps of one path."""

    def __init__(self, model: MaskedDiffusionModel, path: LossPath, sizes: Sizes) -> None:
        self.model = model
        self.path = path
        self.device = sizes.device
        self.batches = path.batches(sizes)
        first = self.batches[0]
        rows = sum(rows_of(batch) for batch in self.batches)
        num_row_tokens = sum(batch.num_row_tokens for batch in self.batches)
        self.result = PathResult(
            path,
            num_tokens=num_row_tokens * first.num_draws // rows,
            num_masked=sum(len(batch.positions) for batch in self.batches),
            num_row_tokens=num_row_tokens,
            num_position_pairs=sum(batch.num_token_pairs for batch in self.batches),
        )

    def step(self) -> torch.Tensor:
        """One forward and backward. Replaces the gradients in the parameters."""
        set_attention(self.model, self.path)
        self.model.zero_grad(set_to_none=True)
        loss = self.path.loss(self.model, self.batches)
        loss.backward()
        return loss.detach()

    def warm_up(self) -> None:
        """Run a step that allocates, compiles and selects kernels, then record memory and loss of another."""
        return_freed_memory()  # before the first step: blocks that it leaves fragmented would count as used
        self.step()
        self.model.zero_grad(set_to_none=True)
        with peak_above(self.device) as peak:
            loss = self.step()
            synchronise(self.device)
        self.result.memory = peak.bytes
        self.result.loss = float(loss)

    def time(self, freed_memory: FreedMemory) -> None:
        """Time one round.

        On the CPU an untimed step comes first, because other paths have changed the allocator.
        """
        if self.device.type == "cpu":
            is_kept = freed_memory == "kept" or (freed_memory == "own" and self.path.ours)
            if is_kept:
                keep_freed_memory()
            else:
                return_freed_memory()
            self.step()
        self.result.seconds.append(seconds_of(self.step, self.device))


def rows_of(batch: Batch) -> int:
    return batch.input_ids.shape[0] if batch.row_lengths is None else len(batch.row_lengths)


def seconds_of(step: Callable[[], object], device: torch.device) -> float:
    """The duration of `step`, including its work on the device."""
    synchronise(device)
    started = time.perf_counter()
    step()
    synchronise(device)
    return time.perf_counter() - started


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass
class Peak:
    bytes: int | None = None


@contextmanager
def peak_above(device: torch.device) -> Iterator[Peak]:
    """The peak of memory inside the `with` block, above the memory in use before it.

    On CUDA this counts tensors. On Linux it counts the resident memory of the process, whose high-water mark
    can be reset.
    """
    peak = Peak()
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak.bytes = torch.cuda.max_memory_allocated(device) - before
        return
    return_freed_memory()  # memory that is free but still resident would be reused without being counted
    resident = None
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM := VmRSS
        resident = process_memory("VmRSS")
    yield peak
    highest = process_memory("VmHWM")
    if resident is not None and highest is not None:
        peak.bytes = highest - resident
