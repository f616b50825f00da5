"""Find the inputs that the user names: files, globs, folders, Hugging Face datasets, the standard library."""

import glob
import hashlib
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from mdmscale.data.preparation.folders import DEFAULT_SPLIT, data_files
from mdmscale.system.errors import UserError

_HUB = "hf:"
_STDLIB_BYTES = 5_000_000
# Left out, as little of them reads like code: tests repeat themselves, encodings and pydoc_data are tables.
_STDLIB_LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "encodings", "pydoc_data"}


@dataclass(frozen=True)
class HubDataset:
    """A dataset that `datasets.load_dataset` opens."""

    name: str
    config: str | None

    def __str__(self) -> str:
        return _HUB + self.name + (f":{self.config}" if self.config else "")


Input = Path | HubDataset


def find_inputs(inputs: list[str], suffixes: list[str], split: str = DEFAULT_SPLIT) -> list[Input]:
    """Find what `inputs` name: files, globs, folders, `hf:NAME[:CONFIG]` and `stdlib`.

    Of a folder these are the files of `split` (see folders.py), at any depth, whose names end with one of
    `suffixes`; a line on the console says if others are left out. A file that is named twice counts once.

    Raises:
        UserError: where an input names nothing, or nothing of this split.
    """
    found = [item for name in inputs for item in _find(name, suffixes, split)]
    return list(dict.fromkeys(found))


def input_bytes(inputs: list[Input]) -> int | None:
    """The size of all inputs on disk, or None where one of them is not on disk."""
    files = [item for item in inputs if isinstance(item, Path)]
    return sum(file.stat().st_size for file in files) if len(files) == len(inputs) else None


def stdlib_files() -> list[Path]:
    """Source files of the Python standard library, about 5 MB, chosen by the hashes of their names.

    Raises:
        UserError: where this Python comes without its source.
    """
    root = Path(sysconfig.get_path("stdlib"))
    names = [file.relative_to(root) for file in root.rglob("*.py")]
    names = [name for name in names if not _STDLIB_LEFT_OUT & set(name.parts)]
    names.sort(key=lambda name: hashlib.sha256(name.as_posix().encode()).digest())
    chosen: list[Path] = []
    num_bytes = 0
    for name in names:
        if num_bytes >= _STDLIB_BYTES:
            break
        chosen.append(root / name)
        num_bytes += (root / name).stat().st_size
    if not chosen:
        raise UserError(f"input 'stdlib': this Python has no library source in {root}; give files instead")
    return sorted(chosen)


def _find(name: str, suffixes: list[str], split: str) -> list[Input]:
    if name == "stdlib":
        return list(stdlib_files())
    if name.startswith(_HUB):
        dataset, _, config = name.removeprefix(_HUB).partition(":")
        return [HubDataset(dataset, config or None)]
    path = Path(name)
    if path.is_file():
        return [path]
    if path.is_dir():
        files, others = data_files(path, suffixes, split)
        if others:
            left_out = ", ".join(f"{number} of {other}" for other, number in sorted(others.items()))
            print(f"{path}: reads {len(files)} of split {split}; leaves out {left_out} (see --split)")
        return list(files)
    files = sorted(file for file in map(Path, glob.glob(name, recursive=True)) if file.is_file())
    if not files:
        problem = "no file matches" if glob.has_magic(name) else "no such file or folder"
        raise UserError(f"input {name!r}: {problem}")
    return list(files)
