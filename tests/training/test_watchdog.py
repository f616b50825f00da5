"""Ranks that stall, stop or die: the job ends in time and names them."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, WORKERS, kill_group, launch_ranks, run_script, start_ranks

from mdmscale.parallel.ranks import Ranks
from mdmscale.training.watchdog import STALLED, Watchdog

LAUNCHER = ROOT / "launchers" / "train.py"
TIMEOUT = 6.0


def endless_config(tiny: dict[str, Any], tmp_path: Path) -> str:
    tiny["train"]["steps"] = 100_000
    tiny["run"]["stall_timeout"] = TIMEOUT
    (tmp_path / "config.yaml").write_text(json.dumps(tiny))
    return str(tmp_path / "config.yaml")


def wait_for_steps(is_running: Callable[[], bool], tmp_path: Path) -> None:
    """Wait until the heartbeats of both ranks are past the first steps."""
    deadline = time.monotonic() + 120
    while any(heartbeat(rank, tmp_path).get("step", 0) < 5 for rank in range(2)):
        assert is_running() and time.monotonic() < deadline
        time.sleep(0.1)


def heartbeat(rank: int, tmp_path: Path) -> dict[str, Any]:
    file = tmp_path / "runs" / "tiny" / "logs" / "heartbeats" / f"{rank}.json"
    return json.loads(file.read_text()) if file.exists() else {}


@pytest.mark.distributed
@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_stopped_rank_ends_the_job(tiny: dict[str, Any], tmp_path: Path, rank: int) -> None:
    job = start_ranks(2, LAUNCHER, "--config", endless_config(tiny, tmp_path))
    try:
        wait_for_steps(lambda: job.poll() is None, tmp_path)
        os.kill(heartbeat(rank, tmp_path)["pid"], signal.SIGSTOP)
        status, output = job.wait(TIMEOUT + 90), job.stdout
    finally:
        job.kill()
    assert status == STALLED, output
    logs = tmp_path / "runs" / "tiny" / "logs"
    report = json.loads((logs / "stall.json").read_text())
    assert report["rank"] == rank and report["step"] >= 5
    assert f"error: rank {rank} on " in output and "gives no sign of life" in output
    assert "Thread" in (logs / f"stacks-{1 - rank}.txt").read_text()


@pytest.mark.slow
@pytest.mark.distributed
def test_a_killed_rank_ends_the_job(tiny: dict[str, Any], tmp_path: Path) -> None:
    process = launch_ranks(2, LAUNCHER, "--config", endless_config(tiny, tmp_path))
    try:
        wait_for_steps(lambda: process.poll() is None, tmp_path)
        os.kill(heartbeat(1, tmp_path)["pid"], signal.SIGKILL)
        output, _ = process.communicate(timeout=TIMEOUT + 90)
    finally:
        kill_group(process)
    assert process.returncode != 0
    assert "exitcode  : -9" in output and "rank      : 1" in output, output  # torchrun saw it at once


@pytest.mark.slow
@pytest.mark.distributed
def test_a_rank_that_hangs_is_told_from_those_that_wait_for_it(tiny: dict[str, Any], tmp_path: Path) -> None:
    """Both processes are alive. The one whose main thread is furthest behind is named."""
    job = start_ranks(2, WORKERS / "train_and_hang.py", "--config", endless_config(tiny, tmp_path))
    try:
        job.wait(TIMEOUT + 120)
    finally:
        job.kill()
    output = job.stdout
    report = json.loads((tmp_path / "runs" / "tiny" / "logs" / "stall.json").read_text())
    assert (report["rank"], report["step"]) == (1, 8), output
    assert "has not moved for" in output
    stacks = (tmp_path / "runs" / "tiny" / "logs" / "stacks-1.txt").read_text()
    assert "train_and_hang.py" in stacks


def test_of_ranks_that_stand_still_the_one_behind_is_named(tmp_path: Path) -> None:
    """It is named even if it stalled last, and so has not been still for the whole timeout yet."""
    heartbeats = tmp_path / "logs" / "heartbeats"
    heartbeats.mkdir(parents=True)
    for rank, (step, still) in enumerate([(9, 6.1), (8, 5.9), (9, 6.3), (7, 0.2)]):
        values = {"host": "h", "pid": 1, "step": step, "still": still, "alive": 1.0}
        (heartbeats / f"{rank}.json").write_text(json.dumps(values))

    def found_by(rank: int) -> dict[str, Any] | None:
        watchdog = Watchdog(tmp_path, Ranks(rank, 4, torch.device("cpu")), TIMEOUT)
        return watchdog._find_stall(time.monotonic())

    report = found_by(0)
    assert report is not None and (report["rank"], report["step"]) == (1, 8)
    assert found_by(2) is None, "that is for rank 0 to tell"


def alone(folder: Path, timeout: float) -> Watchdog:
    return Watchdog(folder, Ranks(0, 1, torch.device("cpu")), timeout)


def test_pauses_and_beats_keep_it_quiet(tmp_path: Path) -> None:
    with alone(tmp_path, 0.5) as watchdog:
        with watchdog.paused():
            time.sleep(1.5)
        for _ in range(10):
            watchdog.beat(3)
            time.sleep(0.1)
    assert json.loads((tmp_path / "logs" / "heartbeats" / "0.json").read_text())["step"] == 3
    assert not (tmp_path / "logs" / "stall.json").exists()


def test_a_timeout_of_0_watches_nothing(tmp_path: Path) -> None:
    with alone(tmp_path, 0.0):
        pass
    assert not list(tmp_path.iterdir())


def test_a_still_process_ends_itself(tmp_path: Path) -> None:
    code = (
        "import sys, time, torch\n"
        "from pathlib import Path\n"
        "from mdmscale.parallel.ranks import Ranks\n"
        "from mdmscale.training.watchdog import Watchdog\n"
        "with Watchdog(Path(sys.argv[1]), Ranks(0, 1, torch.device('cpu')), 0.5) as watchdog:\n"
        "    watchdog.beat(7)\n"
        "    time.sleep(60)\n"
    )
    (tmp_path / "still.py").write_text(code)
    done = run_script(str(tmp_path / "still.py"), str(tmp_path))
    assert done.returncode == STALLED, done.stderr
    assert "has not moved for" in done.stderr and "last in step 7" in done.stderr
    assert "time.sleep" not in done.stdout and "Thread" in (tmp_path / "logs" / "stacks-0.txt").read_text()
