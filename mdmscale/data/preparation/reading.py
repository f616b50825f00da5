"""Open input files, compressed or not, and read them in lines of bounded length."""

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import IO, cast

from mdmscale.data.preparation.endings import compression_of
from mdmscale.system.errors import UserError, first_line

# Longer lines and JSON objects are refused before they are in memory: no document is as long, but a file that
# is not what its name says may have no newline at all.
LONGEST_LINE = 64 * 2**20


class InputFile:
    """The bytes of a file, decompressed. `file` is read; `raw` is the file on disk that lies behind it."""

    def __init__(self, path: Path, file: IO[bytes], raw: IO[bytes]) -> None:
        self.path = path
        self.file = file
        self._raw = raw
        self._seen = 0

    def consumed(self) -> int:
        """How many bytes of the file on disk were read since the last call."""
        before, self._seen = self._seen, self._raw.tell()
        return self._seen - before

    def lines(self) -> Iterator[tuple[int, str]]:
        """The numbers of the lines, from 1 on, and their texts with the line ends. A BOM is left out.

        Raises:
            UserError: naming file and line, where a line is longer than LONGEST_LINE or not UTF-8.
        """
        for number in count(1):
            line = self.file.readline(LONGEST_LINE + 1)
            if not line:
                return
            if len(line) > LONGEST_LINE:
                raise UserError(
                    f"{self.path}:{number}: the line is longer than {LONGEST_LINE >> 20} MiB; split the "
                    "document, or leave it out"
                )
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            try:
                yield number, line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{self.path}:{number}: not UTF-8: {error.reason} at byte {error.start + 1} of the line"
                ) from None


@contextmanager
def opened(path: Path) -> Iterator[InputFile]:
    """Open a file to read. The ending of its name (see endings.py) says how it is compressed.

    Raises:
        UserError: where the file is missing or unreadable, or, from the block, where what is compressed is
            empty, damaged or cut short.
    """
    try:
        with path.open("rb") as raw:
            is_compressed = compression_of(path) is not None
            if is_compressed and not raw.peek(1):
                raise UserError(f"{path}: is empty (0 bytes), so it is not a compressed file")
            yield InputFile(path, _decompressed(raw, path) if is_compressed else raw, raw)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        if isinstance(error, OSError) and error.strerror:
            raise UserError(f"{path}: cannot be read: {error.strerror}") from None
        raise UserError(f"{path}: damaged or cut short: {first_line(error)}") from None


def _decompressed(raw: IO[bytes], path: Path) -> IO[bytes]:
    match compression_of(path):
        case ".gz":
            return cast(IO[bytes], gzip.open(raw))
        case ".bz2":
            return cast(IO[bytes], bz2.open(raw))
        case ".xz":
            return cast(IO[bytes], lzma.open(raw))
        case _:
            import pyarrow  # Python's own library has no zstandard before 3.14

            stream = pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, "r"), "zstd")
            return cast(IO[bytes], io.BufferedReader(stream))
