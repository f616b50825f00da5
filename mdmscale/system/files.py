"""Files as the project reads and writes them. A file that others may read is whole or not there.

It is written beside its place as `.unfinished-NAME`, synced to disk, and renamed. folders.py does the same
for folders. No other module renames.
"""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from itertools import takewhile
from pathlib import Path
from typing import Any

from mdmscale.system.errors import UserError
from mdmscale.system.locks import locked_file


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object on disk.

    Raises:
        UserError: where the file is missing, damaged or something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path}: is damaged: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds no JSON object")
    return content


def write_object(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object into a folder that nobody reads yet."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_file(path: Path, text: str, *, durable: bool = True, writer: str = "") -> None:
    """Give a file the content `text`, all at once; see `written_file`."""
    with written_file(path, durable=durable, writer=writer) as aside:
        aside.write_text(text, encoding="utf-8")


@contextmanager
def written_file(path: Path, *, durable: bool = True, writer: str = "") -> Iterator[Path]:
    """Yield the unfinished file to write; it replaces `path` when the block ends.

    A reader sees the earlier file or the new one. Where the block fails, the earlier file stays, and the
    unfinished file and the parent folders made for it are removed. What a killed writer leaves, the next one
    overwrites. A device or a pipe is not replaced but written to.

    Args:
        durable: also survive a power failure, and refuse a second process that writes the same file. Choose
            False for a status that is replaced every few seconds: a sync takes long on a shared file system.
        writer: names this process where several may write the same file at once with `durable=False`. Each
            then has an unfinished file of its own, and the last one to end wins.

    Raises:
        UserError: where a parent folder cannot be made, or another process is writing this file.
    """
    if path.exists() and not path.is_file():
        yield path
        return
    aside = unfinished(path.with_name(writer + path.name))
    with made_parents(path, durable), locked_file(aside) if durable else nullcontext():
        try:
            yield aside
            if durable:
                fsync(aside)
            aside.replace(path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise


@contextmanager
def made_parents(path: Path, durable: bool = True) -> Iterator[None]:
    """Make the parent folders of `path` that are missing.

    Where the block fails they are removed again; where it succeeds and is `durable`, the names in them are
    synced to disk.

    Raises:
        UserError: where they cannot be made.
    """
    missing = list(takewhile(lambda folder: not folder.exists(), path.parents))
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{path}: cannot be made: {error.strerror}") from None
        yield
    except BaseException:
        for folder in missing:
            with suppress(OSError):  # it was not made, or another process has put something into it
                folder.rmdir()
        raise
    for folder in (path.parent, *(new.parent for new in missing)) if durable else ():
        fsync(folder)


def unfinished(path: Path) -> Path:
    """The name of a file or folder until it is whole. It lies in the same folder, so a rename is enough."""
    return path.with_name(f".unfinished-{path.name}")


def fsync(path: Path) -> None:
    """Wait until a file's content, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that syncs no folders
            raise
    finally:
        os.close(descriptor)


def cut_torn_line(file: Path) -> None:
    """Remove a last line that an interruption left without its end.

    Only the last byte is read where the last line is whole.
    """
    if not file.exists() or not file.stat().st_size:
        return
    with file.open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        if stream.read(1) != b"\n":
            stream.seek(0)
            stream.truncate(stream.read().rfind(b"\n") + 1)
