"""One training at a time in a run folder."""

import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from mdmscale.system.errors import UserError
from mdmscale.system.run_folder import RunFolder
from mdmscale.system.run_lock import only_training

HOLDER = """
import sys, time
from pathlib import Path
from mdmscale.system.run_folder import RunFolder
from mdmscale.system.run_lock import only_training
with only_training(RunFolder(Path(sys.argv[1]))):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "runs" / "mine")


def test_a_second_start_is_told_of_the_first_and_a_killed_one_is_forgotten_at_once(folder: RunFolder) -> None:
    environment = {**os.environ, "SLURM_JOB_ID": "77", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", HOLDER, str(folder.path)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(UserError) as refused, only_training(folder):
            raise AssertionError("not reached")
        since = json.loads(folder.lock.read_text())["since"]
    finally:
        holder.kill()
        holder.wait()
    (problem,) = refused.value.problems
    who = (
        f"process {holder.pid} on {socket.gethostname()} (SLURM job 77), since {since}, is training this run"
    )
    assert problem.startswith(f"{folder.path}: {who}")
    assert f"touch {folder.stop}" in problem and "run.name" in problem
    assert folder.lock.exists(), "a killed process leaves its file"
    with only_training(folder):
        assert json.loads(folder.lock.read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_a_holder_that_has_not_said_who_it_is_is_still_noticed(folder: RunFolder, content: str) -> None:
    with only_training(folder):
        folder.lock.write_text(content)
        with pytest.raises(UserError, match="another process is training this run"), only_training(folder):
            raise AssertionError("not reached")


def test_nothing_is_left_of_a_start_that_fails_and_no_lock_of_one_that_ends(folder: RunFolder) -> None:
    with pytest.raises(ValueError, match="bad"), only_training(folder):
        raise ValueError("bad")
    assert not folder.path.parent.exists()
    with only_training(folder):
        folder.metrics.touch()
    assert [path.name for path in folder.path.iterdir()] == ["metrics.jsonl"]
    with pytest.raises(ValueError, match="bad"), only_training(folder):
        raise ValueError("bad")
    assert folder.metrics.exists()


def test_a_file_system_without_locks_is_said(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with only_training(folder):
        assert capsys.readouterr().out == ""

    def refuse(*_: int) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with only_training(folder):
        assert "without locks" in capsys.readouterr().out
