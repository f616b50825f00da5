"""How runs share a machine, and how their steps are timed."""

import os
import sys

import pytest

from mdmscale.analysis.study.runs import Machine
from mdmscale.analysis.study.timing import seconds_per_step
from mdmscale.system.errors import UserError


def test_each_run_has_gpus_of_its_own() -> None:
    machine = Machine.of(None, ranks=2, num_gpus=8)
    assert machine.jobs == 4
    gpus = [machine.environment(job)["CUDA_VISIBLE_DEVICES"] for job in range(4)]
    assert gpus == ["0,1", "2,3", "4,5", "6,7"]
    with pytest.raises(UserError, match="--ranks 4: there are 2 GPUs"):
        Machine.of(None, ranks=4, num_gpus=2)


def test_without_gpus_runs_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    machine = Machine.of(None, ranks=2, num_gpus=0)
    assert machine.jobs == 4
    assert machine.environment(0)["OMP_NUM_THREADS"] == "1"
    assert Machine.of(1, ranks=2, num_gpus=0).environment(0)["OMP_NUM_THREADS"] == "4"
    assert "CUDA_VISIBLE_DEVICES" not in machine.environment(0)


def test_a_run_on_several_ranks_starts_with_torchrun() -> None:
    assert Machine(1, 1, 0).command(["a"]) == [sys.executable, "-m", "mdmscale", "train", "a"]
    several = Machine(1, 3, 0).command(["a"])
    assert several[1:3] == ["-m", "torch.distributed.run"] and several[-4:] == [
        "-m",
        "mdmscale",
        "train",
        "a",
    ]
    assert several[several.index("--nproc-per-node") + 1] == "3"


def test_the_first_steps_are_not_timed() -> None:
    def record(seconds: float) -> dict[str, float]:
        return {"step": 1, "seconds_forward": seconds, "seconds_step": 2 * seconds, "loss": 9.0}

    slow, quick = [record(100.0)] * 4, [record(seconds) for seconds in (1.0, 1.0, 1.0, 50.0)]
    assert seconds_per_step([*slow, *quick]) == 3.0
