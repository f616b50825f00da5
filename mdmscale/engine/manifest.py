"""manifest.json of a checkpoint: the size and sha256 of every file in it.

It is needed because DeepSpeed loads a shard with a flipped bit without an error. A checkpoint is whole if the
manifest names every rank's file, all files match it, and DeepSpeed's open and hold finite values. Training
resumes from no other checkpoint, and tools read no other.
"""

import json
from collections.abc import Collection
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from mdmscale.engine.files import file_patterns
from mdmscale.engine.finite import all_finite, tensors_in
from mdmscale.engine.private import read_file
from mdmscale.engine.state import read_layout
from mdmscale.system.errors import UserError
from mdmscale.system.files import fsync
from mdmscale.system.run_folder import ENGINE_FOLDER, MANIFEST_FILE, STATE_FILE
from mdmscale.system.sums import Sum, sum_of, sums_of


def write_manifest(checkpoint: Path, sums: dict[str, Sum]) -> None:
    """Write the manifest into a checkpoint that is otherwise complete, and sync it to disk.

    Raises:
        UserError: if `sums` lack a file of any rank, as where the nodes do not share the folder.
    """
    if missing := _missing(sums, checkpoint):
        raise UserError(
            f"{checkpoint}: lacks {missing} after all ranks have written it; run.output_dir must be a folder "
            "that all nodes share"
        )
    manifest = checkpoint / MANIFEST_FILE
    manifest.write_text(json.dumps({"files": sums}, indent=1))
    fsync(manifest)


def read_manifest(checkpoint: Path) -> dict[str, Sum]:
    """The sums in the manifest. Names and sizes of all files have been checked then, and state.json's sum.

    Raises:
        UserError: naming what is missing or damaged.
    """
    manifest = checkpoint / MANIFEST_FILE
    if not manifest.is_file():
        raise UserError(f"this is no checkpoint ({manifest} is missing)")
    try:
        files = json.loads(manifest.read_text())["files"]
        sums = {str(name): Sum(int(size), str(sha256)) for name, (size, sha256) in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{manifest} is damaged") from None
    for name, expected in sums.items():
        path = checkpoint / name
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise UserError(f"{manifest} is damaged: it names {name}, which is not in its folder")
        if not path.is_file():
            raise UserError(f"{path} is missing")
        if path.stat().st_size != expected.size:
            raise UserError(f"{path} has {path.stat().st_size} bytes instead of {expected.size}")
    state = checkpoint / STATE_FILE  # from which the names of DeepSpeed's files follow
    if STATE_FILE in sums and (fault := find_fault(state, sums[STATE_FILE], sum_of(state))):
        raise UserError(fault)
    if missing := _missing(sums, checkpoint):
        raise UserError(f"{manifest} is damaged: it does not name {missing}")
    return sums


def find_fault(path: Path, expected: Sum, found: Sum) -> str | None:
    """What is wrong with a file: another sum, or a file of DeepSpeed that does not open or is not finite."""
    if found != expected:
        return f"{path} does not match its sha256"
    if path.parent.name != ENGINE_FOLDER or path.suffix != ".pt":
        return None
    try:
        is_finite = all_finite(tensors_in(read_file(path, mapped=True)))
    except UserError as error:
        return str(error)
    return None if is_finite else f"{path} holds values that are not finite"


def check_whole(checkpoint: Path) -> None:
    """Refuse to read a checkpoint that is not whole. It reads all of its files.

    Raises:
        UserError: naming the file and the mend.
    """
    mend = "take another checkpoint of the run, or a copy of this one"
    try:
        expected = read_manifest(checkpoint)
    except UserError as error:
        raise UserError(*(f"{checkpoint}: {problem}; {mend}" for problem in error.problems)) from None
    found = sums_of(checkpoint, expected)
    for name in expected:
        if fault := find_fault(checkpoint / name, expected[name], found[name]):
            raise UserError(f"{checkpoint}: {fault}; {mend}")


def _missing(names: Collection[str], checkpoint: Path) -> str | None:
    """A file that a whole checkpoint of its layout has, but that is not among `names`."""
    if STATE_FILE not in names:
        return STATE_FILE
    needed = [f"{ENGINE_FOLDER}/{pattern}" for pattern in file_patterns(read_layout(checkpoint))]
    return next((each for each in needed if not any(fnmatch(name, each) for name in names)), None)
