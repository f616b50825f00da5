"""Folders that are whole or not there.

A folder is written beside its place as `.unfinished-NAME`, synced to disk, and renamed. A folder that has the
name already becomes `.replaced-NAME` for the moment between two renames, and is then removed.
"""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from mdmscale.system.errors import UserError
from mdmscale.system.files import fsync, made_parents, unfinished
from mdmscale.system.locks import locked_folder

# For config, tokenizer and index, and so that the disk is not filled to the last byte.
SPARE_BYTES = 64 * 2**20


@contextmanager
def published_folder(destination: Path, num_bytes: int | None = None) -> Iterator[Path]:
    """Yield a new folder to write into; it becomes `destination` when the block ends.

    An earlier `destination` stays until the new one is whole and on disk. Where the block or the renames
    fail, the earlier one stays, and the unfinished folder and the parent folders made for it are removed.
    What a killed writer leaves, the next one to the same `destination` removes.

    Args:
        num_bytes: about what the block writes, where the disk is to be checked first.

    Raises:
        UserError: where the folder cannot be made, the disk has no room, or another process is writing the
            same destination.
    """
    with made_parents(destination), _locked_new_folder(unfinished(destination)) as aside:
        _finish_swap(destination)
        if num_bytes is not None:
            _check_room(destination, num_bytes)
        yield aside
        publish(aside, destination)


@contextmanager
def published_files(paths: Sequence[Path]) -> Iterator[Path]:
    """Yield a new folder in which to write the files that `paths` names, all of one folder.

    When the block ends, each takes its place, in the order of `paths`: the last is the one without which no
    reader looks at the others. Failures, kills and other processes are handled as by `published_folder`.
    """
    *_, last = paths
    with made_parents(last), _locked_new_folder(unfinished(last)) as aside:
        yield aside
        _sync(aside)
        for path in paths:
            (aside / path.name).replace(path)
        shutil.rmtree(aside)


def make_unfinished(destination: Path) -> Path:
    """Make an empty folder that `publish` turns into `destination`, for several processes to write into.

    What killed writers left in the same place, for any destination, is removed. There is no lock: the caller
    sees to it that nobody else writes there.
    """
    for leftover in destination.parent.glob(unfinished(destination.with_name("*")).name):
        shutil.rmtree(leftover)
    aside = unfinished(destination)
    aside.mkdir(parents=True)
    return aside


def publish(aside: Path, destination: Path, files_are_synced: bool = False) -> None:
    """Sync a finished folder to disk and give it its name.

    Raises:
        OSError: where that fails; an earlier `destination` is then in its place again.
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
    """Clean up after a writer that was killed at its renames: the earlier folder comes back, or goes."""
    replaced = _replaced(destination)
    if destination.exists():
        shutil.rmtree(replaced, ignore_errors=True)
    elif replaced.exists():
        replaced.rename(destination)


@contextmanager
def _locked_new_folder(folder: Path) -> Iterator[Path]:
    """Make an empty `folder` and hold its lock; remove it where the block fails."""
    with ExitStack() as held:
        try:
            if folder.exists():
                with locked_folder(folder):  # its writer was killed
                    shutil.rmtree(folder)
            folder.mkdir()
            held.enter_context(locked_folder(folder))
        except OSError as error:
            raise UserError(f"{folder}: cannot be made: {error.strerror}") from None
        try:
            yield folder
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


def _check_room(destination: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(destination.parent).free
    if free < num_bytes + SPARE_BYTES:
        raise UserError(
            f"{destination}: needs {num_bytes / 1e9:.2f} GB, and the disk has {free / 1e9:.2f} GB free"
        )


def _sync(folder: Path, files: bool = True) -> None:
    for path in (*folder.rglob("*"), folder):
        if path.is_dir() or (files and path.is_file()):
            fsync(path)
