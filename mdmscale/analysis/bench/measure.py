"""Seconds and memory of several paths, taken in turn so that a machine's moods meet all of them alike."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Literal

import torch

from mdmscale.analysis.bench.paths import Path as LossPath
from mdmscale.analysis.bench.paths import prepare
from mdmscale.analysis.bench.work import Sizes
from mdmscale.data.batch import Batch
from mdmscale.models.mdm import MaskedDiffusionModel
from mdmscale.system.allocator import keep_freed_memory, return_freed_memory

FreedMemory = Literal["own", "kept", "returned"]


@dataclass
class Result:
    """What was seen of a path: forward and backward, in each round."""

    path: LossPath
    num_tokens: int  # clean ones of a step; those of a pair count once
    num_masked: int  # positions in all rows
    num_row_tokens: int  # in all rows, without padding
    num_row_pairs: int  # what attention takes
    loss: float = 0.0
    memory: int | None = None  # bytes above what was there before: the most of a step; None: not known here
    seconds: list[float] = field(default_factory=list)

    @property
    def tokens_per_second(self) -> float:
        return self.num_tokens / median(self.seconds)


class Bench:
    """A path's batches on the device, and its step."""

    def __init__(self, model: MaskedDiffusionModel, path: LossPath, sizes: Sizes) -> None:
        self.model = model
        self.path = path
        self.device = sizes.device
        self.batches = path.batches(sizes)
        first = self.batches[0]
        rows = sum(rows_of(batch) for batch in self.batches)
        num_row_tokens = sum(batch.num_tokens for batch in self.batches)
        self.result = Result(
            path,
            num_tokens=num_row_tokens * first.num_draws // rows,
            num_masked=sum(len(batch.positions) for batch in self.batches),
            num_row_tokens=num_row_tokens,
            num_row_pairs=sum(batch.num_token_pairs for batch in self.batches),
        )

    def step(self) -> torch.Tensor:
        """One forward and backward; gradients end up in the parameters, those of before are dropped."""
        prepare(self.model, self.path)
        self.model.zero_grad(set_to_none=True)
        loss = self.path.loss(self.model, self.batches)
        loss.backward()
        return loss.detach()

    def warm_up(self) -> None:
        """The first step, which allocates, compiles and chooses kernels; its memory and loss are kept."""
        return_freed_memory()  # before the first step, or blocks that it leaves apart would count as taken
        self.step()
        self.model.zero_grad(set_to_none=True)
        with peak_above(self.device) as peak:
            loss = self.step()
            synchronise(self.device)
        self.result.memory = peak.bytes
        self.result.loss = float(loss)

    def time(self, freed_memory: FreedMemory) -> None:
        """One more round, after a step that finds memory as the path before it left it."""
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
    """The time that `step` takes, the device's work included."""
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
    """The most memory that is taken meanwhile, above what was taken before.

    On CUDA tensors'; on Linux this process's resident memory, whose high-water mark can be reset.
    """
    peak = Peak()
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak.bytes = torch.cuda.max_memory_allocated(device) - before
        return
    return_freed_memory()  # or what is free would be taken again unseen
    resident = None
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM := VmRSS
        resident = _status("VmRSS")
    yield peak
    if resident is not None:
        peak.bytes = _status("VmHWM") - resident


def _status(name: str) -> int:
    """A line of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
