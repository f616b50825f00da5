"""The files of `data.path` that a run of kind sft encodes itself, at its start. Needs no torch."""

import glob
from pathlib import Path

from mdmscale.config.data import DataSection
from mdmscale.data.preparation.endings import RECORD_ENDINGS
from mdmscale.data.preparation.formats import holds_records
from mdmscale.data.source import path_list
from mdmscale.system.errors import UserError


def is_encoded_by_run(data: DataSection) -> bool:
    """Whether the data is text that a run encodes itself, at its start."""
    return data.kind == "sft" and any(holds_records(Path(path)) for path in path_list(data))


def matching_files(path: str) -> list[Path]:
    """The file of that name, or the files that a glob matches.

    Raises:
        UserError: where there are none.
    """
    files = [Path(path)] if Path(path).is_file() else sorted(Path(match) for match in glob.glob(path))
    if not files:
        raise UserError(f"data.path = {path!r}: no such file")
    if wrong := [file for file in files if not (file.is_file() and holds_records(file))]:
        raise UserError(
            f"data.path: {wrong[0]} is no file of records, but others are; give files to encode "
            f"({' '.join(RECORD_ENDINGS)}) or prepared shards, not both"
        )
    return files
