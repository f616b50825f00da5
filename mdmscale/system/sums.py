"""Sizes and sha256 sums of files, and the list of them in a model folder, which `sha256sum -c` reads, too."""

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from mdmscale.system.errors import UserError

SUMS_FILE = "mdmscale.sha256"


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


def write_sums(folder: Path) -> None:
    """Write SUMS_FILE into a folder that is otherwise complete."""
    names = file_names(folder)
    lines = [f"{each.sha256}  {name}\n" for name, each in sums_of(folder, names).items()]
    (folder / SUMS_FILE).write_text("".join(lines), encoding="utf-8")


def check_sums(folder: Path) -> None:
    """Check a folder that has SUMS_FILE against it. It reads all the files that are named there.

    Files that are not named there, such as code put beside a model later, are not looked at.

    Raises:
        UserError: naming the file that is missing or has another sum, and the mend.
    """
    listing = folder / SUMS_FILE
    if not listing.is_file():
        return
    mend = f"get the folder anew, or remove {listing} if the file was changed on purpose"
    try:
        lines = listing.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        lines = [""]
    expected = {}
    for line in lines:
        sha256, _, name = line.partition("  ")
        if len(sha256) != 64 or not name or Path(name).is_absolute() or ".." in Path(name).parts:
            raise UserError(f"{listing}: is damaged; {mend}")
        expected[name] = sha256
    if missing := [name for name in expected if not (folder / name).is_file()]:
        raise UserError(f"{folder / missing[0]}: is missing, but {SUMS_FILE} names it; {mend}")
    for name, found in sums_of(folder, expected).items():
        if found.sha256 != expected[name]:
            raise UserError(f"{folder / name}: does not match its sha256 in {SUMS_FILE}; {mend}")
