"""A folder that is whole or not there: written beside its place under another name, then renamed."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mdmscale.system.errors import UserError

# For config, tokenizer and index, and so that the disk is not filled to the last byte.
SPARE_BYTES = 64 * 2**20


def check_destination(source: Path, destination: Path, overwrite: bool) -> None:
    """Refuse a destination that would destroy something else.

    Raises:
        UserError: naming it and the mend.
    """
    here, there = source.resolve(), destination.resolve()
    if here == there or here in there.parents or there in here.parents:
        raise UserError(f"{destination}: lies in the source {source}, or holds it; choose another folder")
    if not destination.exists():
        return
    if not overwrite:
        raise UserError(f"{destination}: exists already; choose another folder or give --overwrite")
    if not (destination / "config.json").is_file():
        raise UserError(f"{destination}: is no model folder (no config.json), so it is not replaced")


@contextmanager
def published(destination: Path, num_bytes: int) -> Iterator[Path]:
    """A folder to write about `num_bytes` into, renamed to `destination` when the block ends.

    Where the block fails it is removed; what a killed process left is removed by the next. A `destination`
    that is there is replaced at the end.

    Raises:
        UserError: where the disk has no room, or another process writes to the same destination.
    """
    new_folders = [folder for folder in destination.parents if not folder.exists()]
    unfinished = destination.with_name(f".unfinished-{destination.name}")
    replaced = destination.with_name(f".replaced-{destination.name}")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        lock = _fresh_locked_folder(unfinished)
    except OSError as error:
        raise UserError(f"{destination}: cannot be made: {error.strerror}") from None
    try:
        _check_room(destination, num_bytes)
        yield unfinished
        _sync(unfinished)
        if destination.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            destination.rename(replaced)
        unfinished.rename(destination)
        shutil.rmtree(replaced, ignore_errors=True)
    except BaseException:
        if replaced.exists() and not destination.exists():
            replaced.rename(destination)
        shutil.rmtree(unfinished, ignore_errors=True)
        for folder in new_folders:  # empty, after a failure
            with suppress(OSError):
                folder.rmdir()
        raise
    finally:
        os.close(lock)


def _fresh_locked_folder(folder: Path) -> int:
    """Make `folder` anew, unless a living process holds the lock on it; returns the lock, to be closed."""
    if folder.exists():
        lock = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder}: another conversion to the same place is writing it") from None
        else:
            shutil.rmtree(folder)
        finally:
            os.close(lock)
    folder.mkdir()
    lock = os.open(folder, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return lock


def _check_room(destination: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(destination.parent).free
    if free < num_bytes + SPARE_BYTES:
        raise UserError(
            f"{destination}: needs {num_bytes / 1e9:.2f} GB, and the disk has {free / 1e9:.2f} GB free"
        )


def _sync(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
