"""Writes folders that are either complete or absent.

A folder is written as `.unfinished-NAME` in the same parent, synced to disk, and then renamed. If a folder of
that name exists, the two change names in one operation, and the old one is removed after that. On a file
system that cannot do so, the old one is first renamed to `.replaced-NAME`. A kill between these two renames
leaves no folder of that name until `finish_swap` puts the old one back.
"""

import ctypes
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from mdmscale.system.disk import check_room, disk_errors
from mdmscale.system.errors import UserError
from mdmscale.system.files import REPLACED, fsync, made_parents, unfinished
from mdmscale.system.locks import locked_folder

_HERE, _RENAME_EXCHANGE = -100, 2  # AT_FDCWD and the flag of renameat2, from Linux's headers


@contextmanager
def published_folder(destination: Path, num_bytes: int | None = None) -> Iterator[Path]:
    """Yield a new folder to write into. It becomes `destination` when the block ends.

    An old `destination` stays until the new one is complete and on disk. If the block or the renames fail,
    the old one stays, and the unfinished folder and the parent folders created for it are removed. If a
    writer is killed, the next writer to the same `destination` removes its files.

    Args:
        num_bytes: approximate size of what the block writes. If given, free disk space is checked first.

    Raises:
        UserError: if the folder cannot be created, the disk has too little space or fails, or another process
            is writing the same destination.
    """
    with (
        disk_errors(destination),
        made_parents(destination),
        _locked_new_folder(unfinished(destination)) as aside,
    ):
        finish_swap(destination)
        if num_bytes is not None:
            check_room(destination, num_bytes)
        yield aside
        publish(aside, destination)


@contextmanager
def published_files(paths: Sequence[Path], optional: Sequence[Path] = ()) -> Iterator[Path]:
    """Yield a new folder in which to write the files `paths`, which must all have the same parent.

    Of `optional` files, an older one is removed where the block writes no new one.

    When the block ends, the files are moved to their places in the order of `paths`. The last one must be the
    file without which no reader looks at the others: an older one is removed first, so a kill in between
    leaves no set that looks whole. Otherwise failures, kills and other processes are handled as in
    `published_folder`.
    """
    *_, last = paths
    with disk_errors(last), made_parents(last), _locked_new_folder(unfinished(last)) as aside:
        yield aside
        _sync(aside)
        last.unlink(missing_ok=True)
        for path in optional:
            if (aside / path.name).exists():
                (aside / path.name).replace(path)
            else:
                path.unlink(missing_ok=True)
        for path in paths:
            (aside / path.name).replace(path)
        shutil.rmtree(aside)


def make_unfinished(destination: Path) -> Path:
    """Create an empty folder for several processes to write into. `publish` turns it into `destination`.

    What a killed writer left of it is removed. There is no lock: the caller must ensure that no other job
    writes there.
    """
    aside = unfinished(destination)
    if aside.exists():
        shutil.rmtree(aside)
    aside.mkdir(parents=True)
    return aside


def remove_published(folder: Path) -> None:
    """Remove a folder that others may read: they see all of it or none. Of a link, only the link is removed.

    After a kill in between, the rest of it is a `.replaced-NAME`.
    """
    aside = _replaced(folder)
    folder.rename(aside)
    discard(aside)


def discard(folder: Path) -> None:
    """Remove a folder that no reader opens, as far as that succeeds. Of a link, only the link is removed."""
    if folder.is_symlink():
        folder.unlink()
    else:
        shutil.rmtree(folder, ignore_errors=True)


def publish(aside: Path, destination: Path, files_are_synced: bool = False) -> None:
    """Sync a finished folder to disk and give it its name.

    Raises:
        OSError: if that fails. An old `destination` then has its name again.
    """
    _sync(aside, files=not files_are_synced)
    replaced = aside if _exchange(aside, destination) else _rename_twice(aside, destination)
    fsync(destination.parent)
    discard(replaced)


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders change names at once. False if one is missing or the file system cannot do it."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)  # Linux
    return rename is not None and not rename(
        _HERE, os.fsencode(one), _HERE, os.fsencode(other), _RENAME_EXCHANGE
    )


def _rename_twice(aside: Path, destination: Path) -> Path:
    """Rename an old `destination`, if there is one, and then `aside`. Returns the path of the old one."""
    replaced = _replaced(destination)
    try:
        if destination.exists():
            destination.rename(replaced)
        aside.rename(destination)
    except BaseException:
        if replaced.exists() and not destination.exists():
            replaced.rename(destination)
        raise
    return replaced


def _replaced(destination: Path) -> Path:
    return destination.with_name(REPLACED + destination.name)


def finish_swap(destination: Path) -> None:
    """Clean up after a writer that was killed between its renames: restore the old folder, or remove it.

    The caller must ensure that no other process writes `destination`.
    """
    replaced = _replaced(destination)
    if destination.exists():
        discard(replaced)
    elif replaced.exists():
        replaced.rename(destination)


@contextmanager
def _locked_new_folder(folder: Path) -> Iterator[Path]:
    """Create an empty `folder` and hold its lock. Remove the folder if the block fails."""
    with ExitStack() as held:
        try:
            with disk_errors(folder):
                if folder.exists():
                    with locked_folder(folder):  # its writer was killed
                        shutil.rmtree(folder)
                folder.mkdir()
                held.enter_context(locked_folder(folder))
        except OSError as error:
            raise UserError(f"{folder}: cannot be created: {error.strerror}") from None
        try:
            yield folder
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


def _sync(folder: Path, files: bool = True) -> None:
    for path in (*folder.rglob("*"), folder):
        if path.is_dir() or (files and path.is_file()):
            fsync(path)
