"""Read JSON, one object after another, with errors that name the line.

Python's parser decides what is JSON, so NaN and Infinity are read as numbers. They never become tokens: a
text must be a string, and ids must be integers.
"""

import codecs
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from mdmscale.data.preparation.reading import LONGEST_LINE, InputFile, opened
from mdmscale.system.errors import UserError

_CHUNK = 2**20
_SPACE = re.compile(r"[ \t\r\n]*")


@dataclass(frozen=True)
class Record:
    """One row of data: an object of a JSON file, a row of a table."""

    values: dict[str, Any]
    where: str  # "file:line", or "file, row n" counted from 0, for messages
    num_bytes: float  # how many bytes of the file it stands for; 0 where that is unknown


def read_jsonl(path: Path) -> Iterator[Record]:
    """The objects of a JSONL file, in order. Blank lines are left out.

    Raises:
        UserError: where the file is missing, or, naming file and line, where a line is not a JSON object.
    """
    with opened(path) as file:
        for number, line in file.lines():
            if line.strip():
                where = f"{path}:{number}"
                yield Record(parse_object(line, where), where, file.consumed())


def read_json(path: Path) -> Iterator[Record]:
    """The objects of a .json file: an array of them, a single one, or one after another as in JSONL.

    The file is read in pieces, so its size is not limited, only that of an object.

    Raises:
        UserError: where the file is missing, or, naming file and line, where it holds anything else.
    """
    with opened(path) as file:
        text = _Text(file)
        if text.peek() == "[":
            yield from _read_array(text, file)
        else:
            while text.peek():
                line, values = text.take_object()
                yield Record(values, f"{path}:{line}", file.consumed())


def _read_array(text: "_Text", file: InputFile) -> Iterator[Record]:
    """The items of an array, counted from 0: a whole array may be in one line."""
    follows = text.take()
    for number in count():
        if text.peek() == "]" and number == 0:
            follows = text.take()
            break
        line, values = text.take_object()
        yield Record(values, f"{file.path}:{line}, item {number}", file.consumed())
        if (follows := text.take()) != ",":
            break
    if follows != "]":
        raise UserError(f"{file.path}:{text.line}: not JSON: expected ',' or ']' after an item of the array")
    if text.peek():
        raise UserError(f"{file.path}:{text.line}: not JSON: there is more after the end of the array")


def parse_object(line: str, where: str) -> dict[str, Any]:
    """The JSON object of a line.

    Raises:
        UserError: naming `where`, where it is not JSON, not an object, or too deep or large to be read.
    """
    try:
        values = _decoder.decode(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: {_problem(error)}") from None
    if not isinstance(values, dict):
        raise UserError(f'{where}: expected an object such as {{"text": ...}}, found {type(values).__name__}')
    return values


class _RepeatedKey(ValueError):
    """An object of JSON has the same key twice."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):  # Python's parser keeps the last one without a word
        ((repeated, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise _RepeatedKey(f"an object has the key {repeated[:40]!r} twice")
    return values


_decoder = json.JSONDecoder(object_pairs_hook=_object)


def _problem(error: Exception) -> str:
    """What the parser did not like."""
    match error:
        case json.JSONDecodeError():
            return f"not JSON: {error.msg} at column {error.colno}"
        case RecursionError():
            return "nested too deeply to be read"
        case _RepeatedKey():
            return str(error)
        case _:  # int() refuses these, because its time grows with the square of the length
            return f"has an integer of more than {sys.get_int_max_str_digits():,} digits"


class _Text:
    """The text of a JSON file, of which only a piece is in memory."""

    def __init__(self, file: InputFile) -> None:
        self._file = file
        self._decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        self._piece, self._place = "", 0
        self.line = 1  # of the next character
        self._is_at_end = False

    def peek(self) -> str:
        """The next character that is no white space; "" at the end of the file."""
        while True:
            space = _SPACE.match(self._piece, self._place)
            assert space is not None  # it may be empty
            self._pass(space.end())
            if self._place < len(self._piece):
                return self._piece[self._place]
            if not self._read_more():
                return ""

    def take(self) -> str:
        """As `peek`, but the character is then behind."""
        taken = self.peek()
        self._pass(self._place + len(taken))
        return taken

    def take_object(self) -> tuple[int, dict[str, Any]]:
        """(the line where it begins, the next object), which is then behind."""
        found, where = self.peek(), f"{self._file.path}:{self.line}"
        if found != "{":
            raise UserError(f'{where}: expected an object such as {{"text": ...}}, found {found!r}')
        while True:
            try:
                values, end = _decoder.raw_decode(self._piece, self._place)
            except json.JSONDecodeError as error:
                if len(self._piece) - self._place > LONGEST_LINE:
                    raise UserError(f"{where}: no object ends within {LONGEST_LINE >> 20} MiB") from None
                if self._read_more():  # the object may go on there
                    continue
                line = self.line + self._piece.count("\n", self._place, error.pos)
                raise UserError(f"{self._file.path}:{line}: not JSON: {error.msg}") from None
            except (ValueError, RecursionError) as error:
                raise UserError(f"{where}: {_problem(error)}") from None
            begin = self.line
            self._pass(end)
            return begin, values

    def _pass(self, end: int) -> None:
        self.line += self._piece.count("\n", self._place, end)
        self._place = end

    def _read_more(self) -> bool:
        """Read as much again as there is, so that an object is not parsed again for each small piece."""
        if self._is_at_end:
            return False
        rest = self._piece[self._place :]
        raw = self._file.file.read(max(_CHUNK, len(rest)))
        self._is_at_end = not raw
        try:
            self._piece, self._place = rest + self._decode(raw, final=self._is_at_end), 0
        except UnicodeDecodeError as error:
            raise UserError(f"{self._file.path}: not UTF-8: {error.reason}, after line {self.line}") from None
        return True
