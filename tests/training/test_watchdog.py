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

from mdmscale.config.run import RunSection
from mdmscale.parallel.ranks import Ranks
from mdmscale.training.watchdog import STALLED, Section, Watchdog, limits_of

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
    return alone(tmp_path / "runs" / "tiny")._read_heartbeats().get(rank, {})


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


def alone(folder: Path, **limits: float) -> Watchdog:
    return Watchdog(folder, Ranks(0, 1, torch.device("cpu")), {**NO_LIMITS, **limits})  # type: ignore[dict-item]


NO_LIMITS: dict[Section, float] = {"set-up": 0, "step": 0, "evaluation": 0, "save": 0, "export": 0}


def write_heartbeats(
    folder: Path, heartbeats: list[tuple[Section, int, float]], monkeypatch: pytest.MonkeyPatch
) -> list[Watchdog]:
    """Of ranks that have been still in (section, step, seconds), on two nodes."""
    ranks_per_node, watchdogs = len(heartbeats) // 2, []
    for rank, (section, step, still) in enumerate(heartbeats):
        monkeypatch.setenv("LOCAL_RANK", str(rank % ranks_per_node))
        limits = {**NO_LIMITS, "step": TIMEOUT, "evaluation": 10 * TIMEOUT}
        watchdog = Watchdog(folder, Ranks(rank, len(heartbeats), torch.device("cpu")), limits)
        watchdog._now, watchdog.step = (section, time.monotonic() - still), step
        watchdogs.append(watchdog)
    for watchdog in reversed(watchdogs):  # in any order
        watchdog._write_heartbeat()
    return watchdogs


def test_of_ranks_that_stand_still_the_one_behind_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is named even if it stalled last, and so has not been still for the whole timeout yet."""
    behind: list[tuple[Section, int, float]] = [("step", 9, 6.1), ("step", 8, 5.8), ("step", 9, 6.3)]
    watchdogs = write_heartbeats(tmp_path, [*behind, ("step", 7, 0.2)], monkeypatch)
    report = watchdogs[0]._find_stall(time.monotonic())
    assert report is not None and (report["rank"], report["step"]) == (1, 8)
    assert watchdogs[2]._find_stall(time.monotonic()) is None, "that is for rank 0 to tell"


def test_each_section_has_its_limit_and_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patient: list[tuple[Section, int, float]] = [("evaluation", 9, 7.0), ("save", 9, 900.0)]
    watchdogs = write_heartbeats(tmp_path, patient, monkeypatch)
    assert watchdogs[0]._find_stall(time.monotonic()) is None
    watchdogs = write_heartbeats(tmp_path, [("evaluation", 9, 61.0), ("step", 9, 1.0)], monkeypatch)
    report = watchdogs[0]._find_stall(time.monotonic())
    assert report is not None and report["state"] == "has not moved for 61 s in an evaluation"
    assert report["section"] == "evaluation"


def test_the_ranks_of_a_node_share_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watchdogs = write_heartbeats(tmp_path, [("step", rank, 0.0) for rank in range(6)], monkeypatch)
    files = sorted((tmp_path / "logs" / "heartbeats").iterdir())
    assert [file.name for file in files] == ["0.jsonl", "3.jsonl"]
    found = watchdogs[0]._read_heartbeats()
    assert {rank: each["step"] for rank, each in found.items()} == {rank: rank for rank in range(6)}
    assert watchdogs[5]._read_heartbeats().keys() == {0, 1, 2}, "only those of rank 0's node"
    files[1].write_bytes(b"\0" * 512 + files[1].read_bytes()[512:1024] + b"{torn")
    assert watchdogs[0]._read_heartbeats().keys() == {0, 1, 2, 4}


def test_sections_and_beats_keep_it_quiet(tmp_path: Path) -> None:
    with alone(tmp_path, step=0.5) as watchdog, watchdog.within("step"):
        with watchdog.within("save"):
            time.sleep(1.5)
        for _ in range(10):
            watchdog.beat(3)
            time.sleep(0.1)
    assert watchdog._read_heartbeats()[0]["step"] == 3
    assert not (tmp_path / "logs" / "stall.json").exists()


def test_without_limits_nothing_is_watched(tmp_path: Path) -> None:
    with alone(tmp_path) as watchdog, watchdog.within("step"):
        pass
    assert not list(tmp_path.iterdir())


def test_every_limit_has_a_key() -> None:
    options = RunSection(
        name="x", setup_timeout=1, stall_timeout=2, eval_timeout=3, save_timeout=4, export_timeout=5
    )
    assert limits_of(options) == {"set-up": 1, "step": 2, "evaluation": 3, "save": 4, "export": 5}


STILL = """
import sys, time, torch
from contextlib import nullcontext
from pathlib import Path
from mdmscale.parallel.ranks import Ranks
from mdmscale.training.watchdog import Watchdog
folder, section = Path(sys.argv[1]), sys.argv[2]
limits = {name: 0.5 if name == section else 0 for name in ("set-up", "step", "evaluation", "save", "export")}
with Watchdog(folder, Ranks(0, 1, torch.device("cpu")), limits) as watchdog:
    with nullcontext() if section == "set-up" else watchdog.within(section):
        watchdog.beat(7)
        time.sleep(60)
"""


def still(section: str, tmp_path: Path) -> str:
    """What a process prints whose main thread stands still."""
    (tmp_path / "still.py").write_text(STILL)
    done = run_script(str(tmp_path / "still.py"), str(tmp_path / "run"), section)
    assert done.returncode == STALLED, done.stderr
    return done.stderr


def test_a_still_process_ends_itself(tmp_path: Path) -> None:
    output = still("step", tmp_path)
    assert "s in a step, last in step 7" in output and "Thread" not in output
    assert "Thread" in (tmp_path / "run" / "logs" / "stacks-0.txt").read_text()


def test_a_set_up_without_end_leaves_no_folder(tmp_path: Path) -> None:
    """It may yet have turned out to be a mistake in the config, after which nothing is left."""
    output = still("set-up", tmp_path)
    assert "has not moved for 1 s in set-up" in output and "stacks are above" in output
    assert "Thread" in output and not (tmp_path / "run").exists()
