"""Locks on files and folders that are being written. The system releases them when their process ends."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mdmscale.system.disk import disk_errors
from mdmscale.system.errors import UserError


class Busy(UserError):
    """Another living process holds the lock."""


@contextmanager
def locked_file(path: Path) -> Iterator[bool]:
    """Hold the lock of a file. The file is created if it is missing. Yields whether the lock is held.

    The lock is advisory: it excludes only processes that use these functions. Some network file systems have
    no locks, or locks within a node only. There two writers at once are not detected.

    Raises:
        Busy: naming `path`, if another living process holds its lock.
        UserError: if it cannot be written to.
    """
    try:
        with disk_errors(path):
            descriptor, is_held = _open_locked(path, os.O_RDWR | os.O_CREAT)  # NFS locks only writable files
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}; see its owner") from None
    try:
        yield is_held
    finally:
        os.close(descriptor)


@contextmanager
def locked_folder(path: Path) -> Iterator[None]:
    """Hold the lock of an existing folder, as `locked_file` does for a file. NFS locks folders in a node."""
    descriptor, _ = _open_locked(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield
    finally:
        os.close(descriptor)


def _open_locked(path: Path, flags: int) -> tuple[int, bool]:
    """Open and lock the file or folder that `path` names. Returns the descriptor, and whether it is locked.

    Another process may rename or remove it between opening and locking. Then `path` is opened again.
    """
    while True:
        descriptor = os.open(path, flags, 0o666)
        try:
            is_held = _lock(descriptor, path)
            if _is_named(descriptor, path):
                return descriptor, is_held
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _is_named(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _lock(descriptor: int, path: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Busy(f"{path}: another process is writing it; wait until that process has ended") from None
    except OSError:  # a file system without locks
        return False
    return True
