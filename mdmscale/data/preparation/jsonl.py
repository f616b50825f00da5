"""Read JSONL files line by line, with errors that name the line."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mdmscale.system.errors import UserError


@dataclass(frozen=True)
class Record:
    """One JSON object of a JSONL file."""

    values: dict[str, Any]
    where: str  # "file:line", for messages
    num_bytes: int  # length of the line, with its end


def read_jsonl(path: Path) -> Iterator[Record]:
    """The objects of a JSONL file, in order. Blank lines are left out.

    Raises:
        UserError: where the file is missing, or, naming file and line, where a line is not a JSON object.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if not os.access(path, os.R_OK):
        raise UserError(f"{path}: cannot be read; see its permissions")
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield Record(_parse(line, f"{path}:{number}"), f"{path}:{number}", len(line))


def check_unicode(text: str, where: str) -> str:
    """Return `text` if a tokenizer can encode it.

    Raises:
        UserError: where the text has half a surrogate pair, which JSON escapes can write but UTF-8 cannot.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: character {error.start + 1} is half a surrogate pair, so this is not Unicode text"
        ) from None
    return text


def _parse(line: bytes, where: str) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8: {error.reason} at byte {error.start + 1} of the line") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON: {error.msg} at column {error.colno}") from None
    if not isinstance(values, dict):
        raise UserError(f'{where}: expected an object such as {{"text": ...}}, found {type(values).__name__}')
    return values
