"""A disk that is full or fails is one line that names the file, the disk and the mend."""

import errno
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mdmscale.system.disk import MENDS, check_room, disk_errors
from mdmscale.system.errors import UserError
from mdmscale.system.files import write_file
from mdmscale.system.folders import published_files, published_folder
from mdmscale.system.partial_output import PartialOutput

FULL = Path("/dev/full")  # to which every write fails with ENOSPC


@pytest.mark.parametrize("number", MENDS)
def test_it_names_the_file_the_disk_and_the_mend(tmp_path: Path, number: int) -> None:
    with pytest.raises(UserError) as refused, disk_errors(tmp_path / "file"):
        raise OSError(number, "reason")
    (problem,) = refused.value.problems
    assert problem.startswith(f"{tmp_path / 'file'}: reason (the disk at /") and "\n" not in problem
    assert re.search(r" has \d+\.\d\d GB free\)", problem) and MENDS[number] in problem


def test_it_names_the_file_of_the_error_rather_than_that_of_the_block(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"^{tmp_path}/inner: "), disk_errors(tmp_path):
        raise OSError(errno.EROFS, "Read-only file system", str(tmp_path / "inner"))


def save(path: Path) -> None:
    with path.open("wb") as file:
        torch.save({"weights": torch.zeros(100_000)}, file)


def append(path: Path) -> None:
    output = PartialOutput(path.parent / "out", {})
    output.file.symlink_to(FULL)
    output.append({(0,): {}})


def publish(path: Path) -> None:
    with published_folder(path) as folder:
        (folder / "file").symlink_to(FULL)
        (folder / "file").write_text("text")


def publish_files(path: Path) -> None:
    with published_files([path]) as folder:
        (folder / path.name).symlink_to(FULL)
        (folder / path.name).write_text("text")


WRITERS: dict[str, Callable[[Path], Any]] = {
    "text": lambda path: FULL.write_text("text"),
    "device": lambda path: write_file(FULL, "text"),
    "torch": lambda path: save(FULL),
    "partial output": append,
    "folder": publish,
    "files": publish_files,
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_full_disk_is_told_by_every_writer(tmp_path: Path, write: Callable[[Path], Any]) -> None:
    with pytest.raises(UserError, match=r"^\S+: No space left on device \(the disk at "):
        if write in (WRITERS["text"], WRITERS["torch"]):
            with disk_errors(FULL):
                write(tmp_path / "out")
        else:
            write(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), disk_errors(tmp_path):
        raise PermissionError(errno.EACCES, "Permission denied")
    with pytest.raises(ZeroDivisionError), disk_errors(tmp_path):
        raise ZeroDivisionError
    with pytest.raises(UserError, match=r"^mine$"), disk_errors(tmp_path):
        raise UserError("mine")


def test_room_is_checked_with_some_to_spare(tmp_path: Path) -> None:
    check_room(tmp_path / "file", 1)
    with pytest.raises(
        UserError,
        match=r"file: needs 9000000\.00 GB and 0\.07 GB to spare, but the disk at /\S* has ",
    ):
        check_room(tmp_path / "file", 9 * 10**15)
