"""Files of JSON objects, one on each line, such as metrics.jsonl. They are read as streams, and forgivingly.

A line that holds no JSON object is passed over: a kill may have cut it short, a power failure may have left
zeros in its place, and a person may have put anything there.
"""

import json
import math
import mmap
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

LONGEST = 1 << 20  # bytes of a line; of a longer one, which is damage, no more is read at a time


def json_line(content: dict[str, Any]) -> str:
    """The line of an object. It holds null for NaN and infinity, which JSON does not have."""
    return json.dumps(_standard(content), allow_nan=False) + "\n"


def read_objects(path: Path) -> Iterator[dict[str, Any]]:
    """The objects in a file, in order. At any time only one line is in memory."""
    with path.open("rb") as file:
        for line in iter(partial(file.readline, LONGEST), b""):
            if (content := _object(line)) is not None:
                yield content


def read_objects_backwards(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects in a file from the last to the first, each with the offset at which its line ends."""
    with path.open("rb") as file:
        end = os.fstat(file.fileno()).st_size
        if not end:  # which cannot be mapped
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as lines:
            while end:
                start = lines.rfind(b"\n", 0, end - 1) + 1
                content = _object(lines[start:end]) if end - start <= LONGEST else None
                if content is not None:
                    yield end, content
                end = start


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        content = json.loads(line, parse_constant=lambda _: None)  # NaN of older versions reads as null
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _standard(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _standard(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_standard(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
