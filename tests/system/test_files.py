"""A file is complete or absent, whatever happens to its writer."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mdmscale.system.errors import UserError
from mdmscale.system.files import MOST_BYTES, cut_torn_line, fsync, read_object, write_file, written_file


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_reader_sees_the_earlier_file_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file.json"
    write_file(path, "first")
    with written_file(path) as unfinished:
        unfinished.write_text("second")
        assert path.read_text() == "first"
    assert path.read_text() == "second"
    assert names(path.parent) == ["file.json"]


def test_a_failure_leaves_the_earlier_file_and_nothing_else(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        with pytest.raises(KeyboardInterrupt), written_file(path) as unfinished:
            unfinished.write_text("half")
            raise KeyboardInterrupt

    write_file(tmp_path / "file", "whole")
    fail(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "whole"
    fail(tmp_path / "new" / "folders" / "file")
    assert names(tmp_path) == ["file"]


def test_a_second_writer_of_the_same_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with written_file(path) as unfinished:
        unfinished.write_text("first")
        with pytest.raises(UserError, match=r"\.unfinished-file: another process is writing it"):
            write_file(path, "second")
    assert path.read_text() == "first"
    write_file(path, "third")
    assert path.read_text() == "third"


def test_writers_with_names_do_not_share_an_unfinished_file(tmp_path: Path) -> None:
    path = tmp_path / "stall.json"
    with written_file(path, durable=False, writer="rank-0-") as unfinished:
        unfinished.write_text("half")
        write_file(path, "of rank 1", durable=False, writer="rank-1-")
        assert path.read_text() == "of rank 1"
        unfinished.write_text("of rank 0")
    assert path.read_text() == "of rank 0"
    assert names(tmp_path) == ["stall.json"]


@pytest.mark.parametrize("durable", [True, False])
def test_only_a_durable_file_is_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool
) -> None:
    synced = []
    fsync_of_os = os.fsync
    monkeypatch.setattr(os, "fsync", lambda number: (synced.append(os.fstat(number)), fsync_of_os(number)))
    write_file(tmp_path / "new" / "file", "text", durable=durable)
    expected = [tmp_path / "new" / "file", tmp_path / "new", tmp_path] if durable else []
    assert [found.st_ino for found in synced] == [path.stat().st_ino for path in expected]


def test_a_pipe_is_written_to_and_stays(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    write_file(pipe, "text")
    reader.join()
    assert read == ["text"] and pipe.is_fifo()


def test_a_parent_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/inside: cannot be created: "):
        write_file(tmp_path / "file" / "inside", "text")


def test_a_file_system_that_syncs_no_folders() -> None:
    fsync(Path("/proc"))


KILLED = """
import os, signal, sys
from pathlib import Path
from mdmscale.system.files import written_file
with written_file(Path(sys.argv[1])) as unfinished:
    unfinished.write_text("longer than what the next one writes")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_writer_left_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "file"
    subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert names(tmp_path) == [".unfinished-file"]
    write_file(path, "short")
    assert path.read_text() == "short"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize(("text", "kept"), [("a\nb\n", "a\nb\n"), ("a\nb", "a\n"), ("a", ""), ("", "")])
def test_only_a_torn_line_is_cut(tmp_path: Path, text: str, kept: str) -> None:
    path = tmp_path / "lines"
    path.write_text(text)
    cut_torn_line(path)
    assert path.read_text() == kept


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[" * 100_000, "is damaged: it is nested too deeply"),
        ('{"a": ' * 100_000, "is damaged: it is nested too deeply"),
        ("9" * 5000, "is damaged: Exceeds the limit"),
        ("\xff", "is damaged: 'utf-8' codec"),
        ("[]", "holds no JSON object"),
        (" " * (MOST_BYTES + 1), "is damaged: it has more than 64 MiB"),
    ],
    ids=lambda value: value[:12],
)
def test_json_of_any_content_is_refused_in_a_line(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError) as refused:
        read_object(file)
    assert str(refused.value).startswith(f"{file}: {problem}") and "\n" not in str(refused.value)
