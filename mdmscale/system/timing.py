"""Where a step's time goes, without making the device wait: events on CUDA, the clock elsewhere."""

import resource
import sys
import time
from typing import Any

import torch


class StepClock:
    """Adds up the seconds of a step's parts. `mark` ends the part that ran since the mark before it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._started = time.perf_counter()
        self._marks: list[tuple[str, Any]] = [("", self._now())]

    def mark(self, part: str) -> None:
        """What ran since the last mark was `part`."""
        self._marks.append((part, self._now()))

    @property
    def seconds(self) -> float:
        """Since the step began, by the clock."""
        return time.perf_counter() - self._started

    def parts(self) -> dict[str, float]:
        """Seconds by part, once the device has come to the last mark."""
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
    """Bytes: the most that tensors took on a CUDA device so far, else that this process has had in memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
