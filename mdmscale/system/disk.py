"""Errors of a disk as one line: the file, its disk, and what to do. And the room that is left on it."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mdmscale.system.errors import UserError

# Room for small files, and so that the disk does not fill up completely.
SPARE_BYTES = 64 * 2**20

# The errors of a disk, and the mend of each. Others are mistakes of the code, and keep their traceback.
MENDS = {
    errno.ENOSPC: "remove what is not needed there",
    errno.EDQUOT: "remove what is not needed, or have the quota raised",
    errno.EROFS: "have it mounted for writing",
    errno.EIO: "the disk may be failing, which the system's log (dmesg) tells; use another one",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
}


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an error of the disk within the block into one line. Any other error stays what it is.

    Args:
        path: what the block writes or reads, a file or a folder. It is named if the error names no file.

    Raises:
        UserError: naming the file, its disk, the reason and the mend.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        cause = _disk_error(error)
        if cause is None:
            raise
        named = cause.filename2 or cause.filename  # of two, as of a copy, the second is written
        file = path if named is None else Path(os.fsdecode(named))
        assert cause.errno is not None
        raise UserError(
            f"{file}: {cause.strerror} ({_describe_disk(path)}); {MENDS[cause.errno]}, and give the same "
            "command again"
        ) from None


def check_room(path: Path, num_bytes: int) -> None:
    """Refuse to write about `num_bytes` to `path`, whose folder exists, where the disk has too little room.

    Raises:
        UserError: naming the file, its disk, the room that it has and the room that it needs.
    """
    free = shutil.disk_usage(path.parent).free
    if free < num_bytes + SPARE_BYTES:
        raise UserError(
            f"{path}: needs {num_bytes / 1e9:.2f} GB and {SPARE_BYTES / 1e9:.2f} GB to spare, but the disk "
            f"at {_mount_point(path)} has {free / 1e9:.2f} GB free; {MENDS[errno.ENOSPC]}, and give the same "
            "command again"
        )


def _describe_disk(path: Path) -> str:
    """Where the disk of a file is mounted, and what is free on it."""
    mount = _mount_point(path)
    try:
        disk = os.statvfs(mount)
    except OSError:
        return f"the disk at {mount}"
    if disk.f_files and not disk.f_favail:
        return f"the disk at {mount} has no place for more files"
    return f"the disk at {mount} has {disk.f_bavail * disk.f_frsize / 1e9:.2f} GB free"


def _mount_point(path: Path) -> Path:
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_mount())


def _disk_error(error: BaseException | None) -> OSError | None:
    """The error of the disk that led to `error`: torch raises one of its own while it handles that one."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in MENDS:
            return error
        error = error.__cause__ or error.__context__
    return None
