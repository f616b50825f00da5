"""Builds of DeepSpeed's ops: one at a time, announced, and never waiting for a builder that has ended."""

import errno
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from conftest import kept_environment, run_script

from mdmscale.parallel import op_build
from mdmscale.parallel.op_build import environment_key, load_op, only_builder, own_folder, remove_leftover
from mdmscale.system.errors import UserError

HOLD = "import sys, time; file = open(sys.argv[1], 'w'); print('held', flush=True); time.sleep(60)"
LOCK = (
    "import sys, time; from pathlib import Path; from mdmscale.parallel.op_build import only_builder\n"
    "with only_builder(Path(sys.argv[1]), 'op'): print('held', flush=True); time.sleep(60)"
)


def holder(code: str, path: Path) -> "subprocess.Popen[str]":
    """A process that holds `path` in the way of `code`."""
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_the_lock_of_a_build_that_was_killed_is_removed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = tmp_path / "lock"
    process = holder(HOLD, lock)
    process.kill()
    process.wait()
    assert lock.exists()
    remove_leftover(lock)
    assert not lock.exists()
    assert capsys.readouterr().err == f"removed {lock}: the build that left it has ended\n"
    remove_leftover(lock)
    assert capsys.readouterr().err == "", "there is nothing left to say"


def test_the_lock_of_a_living_build_is_waited_for_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(op_build, "SECONDS_BEFORE_SAYING", 0.2)
    lock = tmp_path / "lock"
    process = holder(HOLD, lock)
    waiting = threading.Thread(target=remove_leftover, args=(lock,))
    waiting.start()
    try:
        waiting.join(1)
        assert waiting.is_alive() and lock.exists()
    finally:
        process.kill()
        process.wait()
        waiting.join()
    said = capsys.readouterr().err.splitlines()
    assert said[0] == f"waiting for a build that holds {lock}; if none is running, delete that file"
    assert len(said) == 2 and said[1].startswith(f"removed {lock}")


def test_the_compilers_of_a_killed_build_are_waited_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They go on when only their parent is killed, and write to the folder."""
    lock = tmp_path / "lock"
    lock.touch()
    code = "import os, sys, time; os.chdir(sys.argv[1]); print('held', flush=True); time.sleep(60)"
    process = holder(code, tmp_path)
    waiting = threading.Thread(target=remove_leftover, args=(lock,))
    waiting.start()
    try:
        waiting.join(0.5)
        assert waiting.is_alive() and lock.exists()
    finally:
        process.kill()
        process.wait()
        waiting.join()
    assert not lock.exists()


def test_without_locks_a_file_that_may_be_another_machine_s_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    monkeypatch.setattr(op_build, "SECONDS_BEFORE_SAYING", 0.1)
    lock = tmp_path / "lock"
    lock.touch()
    with only_builder(tmp_path, "op") as is_certain:
        waiting = threading.Thread(target=remove_leftover, args=(lock, is_certain))
        waiting.start()
        waiting.join(0.5)
        assert waiting.is_alive()
        lock.unlink()  # as its builder would, or the user who reads what to do
        waiting.join()
    said = capsys.readouterr().err
    assert said == f"waiting for a build that holds {lock}; if none is running, delete that file\n"


def test_builders_take_turns_and_a_killed_one_leaves_no_lock(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(op_build, "SECONDS_BEFORE_SAYING", 0.2)
    monkeypatch.setattr(os, "getppid", lambda: 1)  # the other is not of this process's launcher
    process = holder(LOCK, tmp_path)
    entered = threading.Event()

    def enter() -> None:
        with only_builder(tmp_path, "op"):
            entered.set()

    waiting = threading.Thread(target=enter)
    waiting.start()
    assert not entered.wait(1)
    process.kill()
    process.wait()
    waiting.join()
    assert entered.is_set()
    said = capsys.readouterr().err
    assert said.startswith(f"waiting for DeepSpeed's op, which process {process.pid} on ")
    assert said.count("\n") == 1


def test_a_rank_does_not_say_that_it_waits_for_one_of_its_own_job(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(op_build, "SECONDS_BEFORE_SAYING", 0.1)
    monkeypatch.setattr(os, "getppid", os.getpid)  # both are children of this process
    process = holder(LOCK, tmp_path)
    threading.Timer(0.5, process.kill).start()
    with only_builder(tmp_path, "op"):
        assert process.wait() != 0
    assert capsys.readouterr().err == ""


class Builder:
    """A builder of DeepSpeed's kind that compiles nothing."""

    NAME = "an_op"

    def __init__(self, folder: Path, error: Exception | None = None) -> None:
        self.folder, self.error, self.num_loads = folder, error, 0

    def is_compatible(self, verbose: bool) -> bool:
        return True

    def load(self, verbose: bool) -> None:
        self.num_loads += 1
        assert str(Path(sys.executable).parent) in os.environ["PATH"].split(os.pathsep)
        if self.error is not None:
            raise self.error
        (self.folder / self.NAME / f"{self.NAME}.so").touch()


@pytest.fixture
def builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Builder:
    made = Builder(tmp_path)
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))

    class Accelerator:
        def create_op_builder(self, name: str) -> Any:
            return made if name == "AnOpBuilder" else None

    monkeypatch.setattr("deepspeed.get_accelerator", Accelerator)
    return made


def test_a_build_is_announced_once_for_an_environment(
    builder: Builder, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    load_op("AnOpBuilder", "test op")
    folder = tmp_path / "an_op"
    announcement = f"building DeepSpeed's test op, once for this environment: about a minute ({folder})\n"
    assert capsys.readouterr().err == announcement
    load_op("AnOpBuilder", "test op")
    assert (builder.num_loads, capsys.readouterr().err) == (2, "")
    monkeypatch.setattr(sys, "prefix", "/another/environment")
    load_op("AnOpBuilder", "test op")
    assert capsys.readouterr().err == announcement, "torch builds it again for other paths"


def test_an_op_that_this_machine_does_not_have_is_left_out(builder: Builder, tmp_path: Path) -> None:
    load_op("OtherBuilder", "op")
    assert not list(tmp_path.iterdir())


def test_a_build_that_fails_is_a_mistake_with_its_output(builder: Builder, tmp_path: Path) -> None:
    builder.error = RuntimeError("Error building extension 'an_op': [1/2] c++ ...\nfatal error: no Python.h")
    with pytest.raises(UserError, match=r"DeepSpeed's op cannot be built: Error building .*C\+\+ compiler"):
        load_op("AnOpBuilder", "op")
    assert "no Python.h" in (tmp_path / "an_op" / "error.txt").read_text()
    builder.error = None
    load_op("AnOpBuilder", "op")  # once the mend is made


def test_a_build_folder_that_cannot_be_written_is_named(
    builder: Builder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"TORCH_EXTENSIONS_DIR = .*file: cannot be written: Not a directory"):
        load_op("AnOpBuilder", "op")


def test_each_environment_has_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    mine = own_folder()
    assert mine.is_dir() and mine.is_relative_to(tmp_path) and own_folder() == mine
    monkeypatch.setattr(op_build, "_processor", lambda: "flags : another")
    assert own_folder() != mine
    monkeypatch.setattr(sys, "prefix", "/another/environment")
    assert len({mine.name, environment_key()}) == 2


def test_a_read_only_cache_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert own_folder().parent == tmp_path / f"mdmscale-ops-{os.getuid()}"


def test_a_start_beside_a_leftover_lock_goes_on(tmp_path: Path, process_group: None) -> None:
    """With DeepSpeed's real op. torch waits for ever for this lock; the test's time limit would end it."""
    with kept_environment():
        load_op("ShareMemCommBuilder", "op")  # the op is built: this process has a group
        built = Path(os.environ["TORCH_EXTENSIONS_DIR"]) / "deepspeed_shm_comm"
    shutil.copytree(built, tmp_path / "ops" / built.name)  # with its times, so that ninja has nothing to do
    (tmp_path / "ops" / built.name / "lock").touch()
    script = tmp_path / "script.py"
    script.write_text(
        "import os\n"
        f"os.environ['TORCH_EXTENSIONS_DIR'] = {str(tmp_path / 'ops')!r}\n"
        "from mdmscale.parallel.ranks import finalise, initialise\n"
        "print(initialise().world_size)\n"
        "finalise()\n"
    )
    done = run_script(str(script), timeout=100)
    assert done.returncode == 0 and done.stdout.endswith("1\n"), done.stdout + done.stderr
    assert f"removed {tmp_path}/ops/{built.name}/lock" in done.stderr
    assert "building" not in done.stderr
