"""Sizes and sha256 sums of files."""

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple


class Sum(NamedTuple):
    """The size of a file in bytes, and the sha256 of its content in hexadecimal."""

    size: int
    sha256: str


def sum_of(path: Path) -> Sum:
    """The sum of one file."""
    with path.open("rb") as file:
        return Sum(os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest())


def sums_of(folder: Path, names: Iterable[str]) -> dict[str, Sum]:
    """The sums of files in `folder` by name. Several threads, as one does not keep up with a disk."""
    listed = list(names)
    with ThreadPoolExecutor(max_workers=8) as pool:
        return dict(zip(listed, pool.map(sum_of, [folder / name for name in listed]), strict=True))


def file_names(folder: Path) -> list[str]:
    """The files in `folder` and its subfolders, relative to it, in order."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
