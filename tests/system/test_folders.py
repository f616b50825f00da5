"""A folder is complete or absent after failures, kills at any point, a second writer or a full disk."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mdmscale.system import folders
from mdmscale.system.errors import UserError
from mdmscale.system.folders import (
    make_unfinished,
    publish,
    published_files,
    published_folder,
    remove_published,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fill(destination: Path, text: str) -> None:
    with published_folder(destination, 10) as folder:
        (folder / "a").write_text(text)
        (folder / "inner").mkdir()
        (folder / "inner" / "b").write_text(text)
        assert not destination.exists() or text not in contents(destination)


def contents(folder: Path) -> list[str]:
    return [path.read_text() for path in (folder / "a", folder / "inner" / "b")]


def test_it_appears_when_it_is_complete(tmp_path: Path) -> None:
    for text in ("new", "newer"):
        fill(tmp_path / "x" / "y", text)
        assert contents(tmp_path / "x" / "y") == [text, text]
        assert names(tmp_path / "x") == ["y"]


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    def fail(destination: Path) -> None:
        with pytest.raises(KeyboardInterrupt), published_folder(destination) as folder:
            (folder / "a").write_text("half")
            raise KeyboardInterrupt

    fail(tmp_path / "new" / "folders" / "out")
    assert names(tmp_path) == []
    fill(tmp_path / "out", "old")
    fail(tmp_path / "out")
    assert contents(tmp_path / "out") == ["old", "old"]
    assert names(tmp_path) == ["out"]


def test_a_disk_without_room_is_noticed_first(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=r"needs 9000000\.00 GB and 0\.07 GB to spare, but the disk at"),
        published_folder(tmp_path / "out", 9 * 10**15),
    ):
        raise AssertionError("not reached")
    assert names(tmp_path) == []


def refuse_rename(monkeypatch: pytest.MonkeyPatch, of: str) -> None:
    """Make the file system refuse to rename the file or folder named `of`."""
    rename = Path.rename

    def refuse(path: Path, target: Path) -> Path:
        if path.name == of:
            raise OSError("stale file handle")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)


@pytest.mark.parametrize("of", ["out", ".unfinished-out"])
def test_a_failed_swap_puts_the_earlier_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of: str
) -> None:
    """On a file system that cannot exchange two names."""
    monkeypatch.setattr(folders, "_exchange", lambda *_: False)
    fill(tmp_path / "out", "old")
    refuse_rename(monkeypatch, of)
    with pytest.raises(OSError, match="stale"):
        fill(tmp_path / "out", "new")
    assert contents(tmp_path / "out") == ["old", "old"]
    assert names(tmp_path) == ["out"]


PUBLISH = """
import os, signal, sys
from pathlib import Path
from mdmscale.system import folders
from mdmscale.system.folders import published_folder

destination, last = Path(sys.argv[1]), int(sys.argv[2])
if sys.argv[3] == "twice":  # as on a file system that cannot exchange two names
    folders._exchange = lambda *_: False
operations = 0

def kill_at_the_last(event, _):
    global operations
    if event in {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}:
        operations += 1
        if operations == last:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(kill_at_the_last)
with published_folder(destination, 10) as folder:
    (folder / "a").write_text("new")
    (folder / "inner").mkdir()
    (folder / "inner" / "b").write_text("new")
"""


def publish_until(destination: Path, operation: int, renames: str) -> int:
    """Publish in a process that is killed before a given file-system operation. Returns its exit status."""
    command = [sys.executable, "-c", PUBLISH, str(destination), str(operation), renames]
    return subprocess.run(command, check=False).returncode


@pytest.mark.parametrize(("earlier", "renames"), [(False, "once"), (True, "once"), (True, "twice")])
def test_killed_at_any_stage_nothing_is_half_there_and_the_next_publish_succeeds(
    tmp_path: Path, earlier: bool, renames: str
) -> None:
    seen = set()
    for operation in range(1, 100):
        folder = tmp_path / str(operation)
        folder.mkdir()
        destination = folder / "out"
        if earlier:
            fill(destination, "old")
        status = publish_until(destination, operation, renames)
        if status == 0:
            break
        assert status == -signal.SIGKILL
        seen.add(tuple(names(folder)))
        if destination.exists():
            assert contents(destination) in ([["old"] * 2, ["new"] * 2] if earlier else [["new"] * 2])
        elif earlier:  # between the two renames
            assert renames == "twice"
            assert contents(folder / ".replaced-out") == ["old", "old"]
        fill(destination, "newest")
        assert contents(destination) == ["newest", "newest"]
        assert names(folder) == ["out"]
    else:
        raise AssertionError("it was killed every time")
    if earlier and renames == "once":
        assert {(".unfinished-out", "out"), ("out",)} == seen
    elif earlier:
        assert {(".replaced-out", ".unfinished-out"), (".replaced-out", "out"), ("out",)} <= seen
    else:
        assert {(), (".unfinished-out",), ("out",)} <= seen


def test_a_link_is_replaced_and_what_it_points_to_stays(tmp_path: Path) -> None:
    fill(tmp_path / "elsewhere", "old")
    (tmp_path / "out").symlink_to(tmp_path / "elsewhere")
    fill(tmp_path / "out", "new")
    assert contents(tmp_path / "out") == ["new", "new"] and contents(tmp_path / "elsewhere") == ["old", "old"]
    assert names(tmp_path) == ["elsewhere", "out"]


def test_after_a_kill_between_the_renames_a_failure_brings_the_earlier_folder_back(tmp_path: Path) -> None:
    fill(tmp_path / "out", "old")
    (tmp_path / "out").rename(tmp_path / ".replaced-out")
    with pytest.raises(RuntimeError), published_folder(tmp_path / "out"):
        raise RuntimeError
    assert contents(tmp_path / "out") == ["old", "old"]
    assert names(tmp_path) == ["out"]


WRITE_SLOWLY = """
import sys, time
from pathlib import Path
from mdmscale.system.folders import published_folder
with published_folder(Path(sys.argv[1])) as folder:
    (folder / "begun").touch()
    sys.stdin.read()
"""


def test_a_second_writer_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITE_SLOWLY, str(tmp_path / "out")]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        wait_for((tmp_path / ".unfinished-out" / "begun").exists, process)
        with pytest.raises(UserError, match=r"\.unfinished-out: another process is writing it"):
            fill(tmp_path / "out", "second")
        assert (tmp_path / ".unfinished-out" / "begun").exists()
        process.kill()
    fill(tmp_path / "out", "third")
    assert names(tmp_path) == ["out"]


def wait_for(condition: Callable[[], bool], process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


def test_files_that_belong_together_appear_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / "new" / name for name in ("shard.bin", "shard.idx")]
    moved = []
    replace = Path.replace
    monkeypatch.setattr(
        Path, "replace", lambda path, target: (moved.append(target.name), replace(path, target))
    )
    with published_files(paths) as folder:
        for path in paths:
            (folder / path.name).write_text(path.name)
        assert names(tmp_path / "new") == [".unfinished-shard.idx"]
    assert moved == names(tmp_path / "new") == ["shard.bin", "shard.idx"]


def test_files_that_belong_together_all_stay_away_after_a_failure(tmp_path: Path) -> None:
    paths = [tmp_path / "new" / name for name in ("shard.bin", "shard.idx")]
    with pytest.raises(RuntimeError), published_files(paths) as folder:
        (folder / "shard.bin").write_text("")
        raise RuntimeError
    assert names(tmp_path) == []


def test_a_folder_that_several_processes_write(tmp_path: Path) -> None:
    destination = tmp_path / "checkpoints" / "step-2"
    (make_unfinished(destination) / "of a killed writer").touch()
    unfinished = make_unfinished(destination)
    (unfinished / "shard").write_text("whole")
    assert names(destination.parent) == [unfinished.name]
    publish(unfinished, destination)
    assert names(destination.parent) == ["step-2"]
    assert names(destination) == ["shard"]
    assert (destination / "shard").read_text() == "whole"


def test_a_published_folder_is_removed_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill leaves a part of it only under a name that no reader opens."""
    fill(tmp_path / "out", "old")
    monkeypatch.setattr("shutil.rmtree", lambda folder, ignore_errors: (folder / "a").unlink())
    remove_published(tmp_path / "out")
    assert names(tmp_path) == [".replaced-out"]
