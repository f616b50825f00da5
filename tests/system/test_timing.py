"""The parts of a step add up to the whole step."""

import time

import pytest
import torch

from mdmscale.system.timing import StepClock, peak_memory


def test_parts_add_up_and_repeated_ones_are_summed() -> None:
    clock = StepClock(torch.device("cpu"))
    for _ in range(2):
        time.sleep(0.02)
        clock.mark("forward")
        time.sleep(0.01)
        clock.mark("backward")
    parts = clock.parts()
    assert list(parts) == ["forward", "backward"]
    assert parts["forward"] >= 0.04 and parts["backward"] >= 0.02
    assert sum(parts.values()) == pytest.approx(clock.seconds, rel=0.2)


def test_peak_memory_grows_with_what_is_held() -> None:
    before = peak_memory(torch.device("cpu"))
    held = torch.ones(64, 2**20)  # 256 MiB
    assert peak_memory(torch.device("cpu")) >= before
    assert peak_memory(torch.device("cpu")) > held.numel() * 4
