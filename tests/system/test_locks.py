"""Locks when two processes write the same path, and file systems without locks."""

import errno
import fcntl
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from mdmscale.system.errors import UserError
from mdmscale.system.locks import locked_file, locked_folder


@pytest.mark.parametrize("locked", [locked_file, locked_folder])
def test_one_holder_at_a_time(tmp_path: Path, locked: Callable[[Path], AbstractContextManager[None]]) -> None:
    path = tmp_path / "file" if locked is locked_file else tmp_path
    with locked(path), pytest.raises(UserError, match=f"{path}: another process is writing it"), locked(path):
        raise AssertionError("not reached")
    with locked(path):
        pass


@pytest.mark.parametrize("other", ["renamed", "removed"])
def test_what_another_process_takes_away_before_the_lock_is_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    path = tmp_path / "file"
    flock = fcntl.flock
    calls = []

    def flock_too_late(descriptor: int, operation: int) -> None:
        flock(descriptor, operation)
        calls.append(descriptor)
        if len(calls) == 1 and other == "renamed":
            path.rename(tmp_path / "published")
            path.touch()
        elif len(calls) == 1:
            path.unlink()

    monkeypatch.setattr(fcntl, "flock", flock_too_late)
    with locked_file(path):
        assert len(calls) == 2
        with pytest.raises(UserError, match="another process"), locked_file(path):
            raise AssertionError("not reached")


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EIO])
def test_a_file_system_without_locks_is_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    refuse_locks(monkeypatch, number)
    with locked_file(tmp_path / "file"):
        assert (tmp_path / "file").exists()


def test_a_file_that_may_not_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    message = "file: cannot be written: Permission denied"
    with pytest.raises(UserError, match=message), locked_file(tmp_path / "file"):
        raise AssertionError("not reached")


def refuse_locks(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*_: int) -> None:
        raise OSError(number, "refused")

    monkeypatch.setattr(fcntl, "flock", refuse)
