"""Measures the parts of a step. On a GPU it uses CUDA events, so nothing waits; on the CPU, the clock."""

import resource
import sys
import time
from typing import Any

import torch


class StepClock:
    """Sums the seconds of each part of a step. `mark` ends the part that began at the previous mark."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._started = time.perf_counter()
        self._marks: list[tuple[str, Any]] = [("", self._now())]

    def mark(self, part: str) -> None:
        """End `part`, which began at the previous mark."""
        self._marks.append((part, self._now()))

    @property
    def seconds(self) -> float:
        """Seconds since the step began, measured with the clock."""
        return time.perf_counter() - self._started

    def parts(self) -> dict[str, float]:
        """Seconds of each part. Waits until the device has reached the last mark."""
        if self.device.type == "cuda":
            self._marks[-1][1].synchronize()
        sums: dict[str, float] = {}
        for (_, before), (part, after) in zip(self._marks, self._marks[1:], strict=False):
            sums[part] = sums.get(part, 0.0) + self._between(before, after)
        return sums

    def _between(self, before: Any, after: Any) -> float:
        return before.elapsed_time(after) / 1000 if self.device.type == "cuda" else after - before

    def _now(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def peak_memory(device: torch.device) -> int:
    """Peak memory so far, in bytes: of tensors on a CUDA device, otherwise of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
