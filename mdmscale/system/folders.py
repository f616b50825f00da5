"""Writes folders that are either complete or absent.

A folder is written as `.unfinished-NAME` in the same parent, synced to disk, and then renamed. If a folder of
that name exists, it is first renamed to `.replaced-NAME`, and it is removed after the second rename.
"""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from mdmscale.system.disk import check_room, disk_errors
from mdmscale.system.errors import UserError
from mdmscale.system.files import fsync, made_parents, unfinished
from mdmscale.system.locks import locked_folder


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
        _finish_swap(destination)
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

    Unfinished folders that killed writers left in the same parent are removed, whatever their destination.
    There is no lock: the caller must ensure that no other job writes there.
    """
    for leftover in destination.parent.glob(unfinished(destination.with_name("*")).name):
        shutil.rmtree(leftover)
    aside = unfinished(destination)
    aside.mkdir(parents=True)
    return aside


def publish(aside: Path, destination: Path, files_are_synced: bool = False) -> None:
    """Sync a finished folder to disk and give it its name.

    Raises:
        OSError: if that fails. An old `destination` then has its name again.
    """
    _sync(aside, files=not files_are_synced)
    replaced = _replaced(destination)
    try:
        if destination.exists():
            destination.rename(replaced)
        aside.rename(destination)
    except BaseException:
        if replaced.exists() and not destination.exists():
            replaced.rename(destination)
        raise
    fsync(destination.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _replaced(destination: Path) -> Path:
    return destination.with_name(f".replaced-{destination.name}")


def _finish_swap(destination: Path) -> None:
    """Clean up after a writer that was killed between its renames: restore the old folder, or remove it."""
    replaced = _replaced(destination)
    if destination.exists():
        shutil.rmtree(replaced, ignore_errors=True)
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
