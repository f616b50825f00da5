"""Reads and writes files. A file that others may read is either complete or absent.

A file is written in its folder as `.unfinished-NAME`, synced to disk, and then renamed. folders.py does the
same for folders. No other module renames files or folders.
"""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from itertools import takewhile
from pathlib import Path
from typing import Any

from mdmscale.system.disk import disk_errors
from mdmscale.system.errors import UserError
from mdmscale.system.locks import locked_file

# How the names of a file or folder begin while it is unfinished, and while it is on its way out.
UNFINISHED, REPLACED = ".unfinished-", ".replaced-"
MOST_BYTES = 2**26  # of a file that `read_json` reads; the largest are the indexes of very large models


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        UserError: if the file is missing, is damaged, or holds no JSON object.
    """
    try:
        content = read_json(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path}: is damaged: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds no JSON object")
    return content


def read_json(path: Path) -> Any:
    """The JSON value in a file that describes something, and so is small.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is too large, no JSON, or nested too deeply.
    """
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"it has more than {MOST_BYTES >> 20} MiB")
    return parse_json(content.decode("utf-8"))


def parse_json(text: str) -> Any:
    """The JSON value of a text.

    Raises:
        ValueError: if it is no JSON, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def write_object(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object into an unfinished folder, which no process reads yet."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_file(path: Path, text: str, *, durable: bool = True, writer: str = "") -> None:
    """Replace the content of a file by `text`, atomically; see `written_file`."""
    with written_file(path, durable=durable, writer=writer) as aside:
        aside.write_text(text, encoding="utf-8")


@contextmanager
def written_file(path: Path, *, durable: bool = True, writer: str = "") -> Iterator[Path]:
    """Yield an unfinished file to write. It replaces `path` when the block ends.

    A reader sees either the old file or the new one. If the block fails, the old file stays, and the
    unfinished file and the parent folders created for it are removed. If a writer is killed, the next writer
    overwrites its unfinished file. If `path` is a device or a pipe, the block writes to it directly. If it is
    a link, the file that it points to is replaced.

    Args:
        durable: survive a power failure too, and refuse a second process that writes the same file. Pass
            False for a status that is replaced every few seconds: a sync is slow on a shared file system.
        writer: names this process, if several may write the same file at once with `durable=False`. Each
            then has its own unfinished file, and the last one to finish wins.

    Raises:
        UserError: if a parent folder cannot be created, the disk is full or fails, or another process is
            writing this file.
    """
    if path.exists() and not path.is_file():
        with disk_errors(path):
            yield path
        return
    if path.is_symlink():
        path = path.resolve()
    aside = unfinished(path.with_name(writer + path.name))
    with disk_errors(path), made_parents(path, durable), locked_file(aside) if durable else nullcontext():
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
    """Create the missing parent folders of `path`.

    If the block fails, they are removed again. If it succeeds and `durable` is set, their entries are synced
    to disk.

    Raises:
        UserError: if they cannot be created.
    """
    missing = list(takewhile(lambda folder: not folder.exists(), path.parents))
    try:
        try:
            with disk_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{path}: cannot be created: {error.strerror}") from None
        yield
    except BaseException:
        for folder in missing:
            with suppress(OSError):  # it does not exist, or another process has put something into it
                folder.rmdir()
        raise
    for folder in (path.parent, *(new.parent for new in missing)) if durable else ():
        fsync(folder)


def unfinished(path: Path) -> Path:
    """The path of a file or folder while it is unfinished. It has the same parent, so a rename suffices."""
    return path.with_name(UNFINISHED + path.name)


def fsync(path: Path) -> None:
    """Wait until the content of a file, or the entries of a folder, are on disk."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:
        if path.is_dir():  # one that may be written to but not read
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems cannot sync folders
            raise
    finally:
        os.close(descriptor)


def cut_torn_line(file: Path) -> None:
    """Remove the last line of a file if an interruption left it incomplete.

    If the last line is complete, only the last byte is read.
    """
    if not file.exists() or not file.stat().st_size:
        return
    with file.open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        if stream.read(1) != b"\n":
            stream.seek(0)
            stream.truncate(stream.read().rfind(b"\n") + 1)
