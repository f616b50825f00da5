"""Token shards in Megatron's indexed format: `<prefix>.bin` has the ids, `<prefix>.idx` their documents.

.idx, little-endian: magic, version u64, dtype code u8, number of sequences u64, number of document boundaries
u64, then sequence lengths i32[], byte pointers i64[] and the document index i64[] (the first sequence of each
document, and the number of sequences at the end). A document may have several sequences.
"""

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from mdmscale.errors import UserError

_MAGIC = b"MMIDIDX\x00\x00"
_VERSION = 1
_HEADER = struct.Struct("<9sQBQQ")
_DTYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 6: "<f8", 7: "<f4", 8: "<u2"}
_CODES = {np.dtype(name): code for code, name in _DTYPES.items()}
_BYTES_PER_SEQUENCE = 4 + 8
_CHECKED_POINTERS = 65536


def bin_path(prefix: Path) -> Path:
    return Path(f"{prefix}.bin")


def idx_path(prefix: Path) -> Path:
    return Path(f"{prefix}.idx")


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest dtype that Megatron would choose for ids below `vocab_size`."""
    return np.dtype("<u2" if vocab_size < 65500 else "<i4")


class IndexedWriter:
    """Writes one shard, a sequence a document. As a context manager it leaves no file if the block fails."""

    def __init__(self, prefix: Path, dtype: np.dtype) -> None:
        self.prefix = prefix
        self.dtype = dtype
        self.num_tokens = 0
        self._lengths: list[int] = []
        self._bin = bin_path(prefix).open("wb")

    @property
    def num_documents(self) -> int:
        return len(self._lengths)

    def add_document(self, token_ids: np.ndarray) -> None:
        """Append a document's ids, integers [length] that fit the shard's dtype."""
        self._bin.write(token_ids.astype(self.dtype, copy=False).tobytes())
        self._lengths.append(len(token_ids))
        self.num_tokens += len(token_ids)

    def close(self) -> None:
        """Finish .bin and write .idx."""
        self._bin.close()
        write_index(self.prefix, np.asarray(self._lengths, dtype="<i4"), self.dtype)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error_type is None:
            self.close()
        else:
            self._bin.close()
            bin_path(self.prefix).unlink(missing_ok=True)


def write_index(prefix: Path, lengths: np.ndarray, dtype: np.dtype) -> None:
    """Write the .idx of documents of `lengths` [documents] that lie one after the other, a sequence each."""
    lengths = lengths.astype("<i4", copy=False)
    ends = np.cumsum(lengths, dtype="<i8") * dtype.itemsize
    pointers = ends - lengths.astype("<i8") * dtype.itemsize
    documents = np.arange(len(lengths) + 1, dtype="<i8")
    header = _HEADER.pack(_MAGIC, _VERSION, _CODES[dtype], len(lengths), len(documents))
    with idx_path(prefix).open("wb") as file:
        file.writelines([header, lengths.tobytes(), pointers.tobytes(), documents.tobytes()])


@dataclass(frozen=True)
class _Index:
    lengths: np.ndarray  # i32 [sequences], in tokens
    pointers: np.ndarray  # i64 [sequences], in bytes
    documents: np.ndarray  # i64 [documents + 1]


class IndexedShard:
    """Reads one shard whose sequences lie one after the other, as Megatron writes them.

    Nothing stays open or mapped between reads, and no array of the shard's size is made: thousands of shards
    cost neither descriptors nor memory, and the page cache makes repeated reads cheap.

    Raises:
        UserError: on opening, where a file is missing, empty, cut short or not of this format.
    """

    def __init__(self, prefix: Path) -> None:
        self.prefix = prefix
        self._bin = str(bin_path(prefix))  # joining it anew would take as long as a read
        code, self._num_sequences, boundaries = _read_header(idx_path(prefix))
        self.dtype = _token_dtype_of(code, idx_path(prefix))
        self.num_documents = boundaries - 1
        self._check_idx_size()
        self.num_tokens = self._count_tokens()
        self._check_index()

    def document_starts(self, documents: np.ndarray) -> np.ndarray:
        """Token offsets in the shard at which `documents` begin; document `num_documents` begins at the end.

        Shapes: int64 [n] -> int64 [n].
        """
        index = self._index()
        sequences = index.documents[documents]
        inner = sequences < self._num_sequences
        starts = np.full(len(sequences), self.num_tokens, dtype=np.int64)
        starts[inner] = index.pointers[sequences[inner]] // self.dtype.itemsize
        return starts

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """Ids of the shard's tokens start..stop - 1, int64 [stop - start]."""
        itemsize = self.dtype.itemsize
        descriptor = os.open(self._bin, os.O_RDONLY)
        try:
            raw = _read_at(descriptor, (stop - start) * itemsize, start * itemsize)
        finally:
            os.close(descriptor)
        if len(raw) != (stop - start) * itemsize:
            raise UserError(f"{self._bin}: ends before token {stop}; was it replaced during the run?")
        return np.frombuffer(raw, self.dtype).astype(np.int64)

    def _index(self) -> _Index:
        raw = np.memmap(idx_path(self.prefix), mode="r", dtype=np.uint8)
        count, offset = self._num_sequences, _HEADER.size
        lengths = np.frombuffer(raw, "<i4", count, offset)
        pointers = np.frombuffer(raw, "<i8", count, offset + 4 * count)
        documents = np.frombuffer(raw, "<i8", self.num_documents + 1, offset + _BYTES_PER_SEQUENCE * count)
        return _Index(lengths, pointers, documents)

    def _check_idx_size(self) -> None:
        path = idx_path(self.prefix)
        needed = _HEADER.size + _BYTES_PER_SEQUENCE * self._num_sequences + 8 * (self.num_documents + 1)
        if path.stat().st_size < needed:
            raise UserError(
                f"{path}: cut short: {path.stat().st_size} bytes, but its header announces {needed}"
            )

    def _count_tokens(self) -> int:
        path = bin_path(self.prefix)
        if not path.is_file():
            raise UserError(f"{path}: no such file, though {idx_path(self.prefix).name} lies beside it")
        num_bytes = path.stat().st_size
        if not num_bytes or not self._num_sequences:
            raise UserError(f"{path}: holds no tokens; leave the shard out or prepare it again")
        return num_bytes // self.dtype.itemsize

    def _check_index(self) -> None:
        """That .idx and .bin belong together: exactly at the ends, between them at evenly spaced places."""
        index, itemsize = self._index(), self.dtype.itemsize
        announced = int(index.pointers[-1]) + int(index.lengths[-1]) * itemsize
        if announced != bin_path(self.prefix).stat().st_size:
            raise UserError(
                f"{bin_path(self.prefix)}: {bin_path(self.prefix).stat().st_size} bytes, but "
                f"{idx_path(self.prefix).name} announces {announced}; "
                "one of the two is cut short or from another shard"
            )
        places = np.unique(np.linspace(0, self._num_sequences - 1, _CHECKED_POINTERS).astype(np.int64))
        ends = np.append(index.pointers[1:][places[:-1]], announced)
        contiguous = np.array_equal(
            ends, index.pointers[places] + index.lengths[places].astype(np.int64) * itemsize
        )
        if index.pointers[0] or not contiguous:
            raise UserError(
                f"{idx_path(self.prefix)}: its sequences do not lie one after the other; write it again"
            )
        if index.documents[0] or index.documents[-1] != self._num_sequences:
            raise UserError(f"{idx_path(self.prefix)}: its document index does not span its sequences")


def _read_header(path: Path) -> tuple[int, int, int]:
    """(dtype code, sequences, document boundaries) of an .idx file."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    with path.open("rb") as file:
        header = file.read(_HEADER.size)
    if len(header) < _HEADER.size:
        raise UserError(
            f"{path}: cut short or empty: {len(header)} bytes, its header alone has {_HEADER.size}"
        )
    magic, version, code, sequences, boundaries = _HEADER.unpack(header)
    if magic != _MAGIC:
        raise UserError(f"{path}: not an index in Megatron's format (it begins with {magic!r})")
    if version != _VERSION:
        raise UserError(f"{path}: version {version} of the indexed format; only version {_VERSION} is known")
    if boundaries < 1:
        raise UserError(f"{path}: has no document index")
    return code, sequences, boundaries


def _token_dtype_of(code: int, path: Path) -> np.dtype:
    dtype = np.dtype(_DTYPES[code]) if code in _DTYPES else None
    if dtype is None or dtype.kind == "f":
        raise UserError(f"{path}: dtype code {code} is not one of token ids (1 to 5 and 8)")
    return dtype


def _read_at(descriptor: int, size: int, offset: int) -> bytes:
    """So many bytes of a file, fewer at its end; some file systems give them in pieces."""
    read = os.pread(descriptor, size, offset)
    while read and len(read) < size:
        more = os.pread(descriptor, size - len(read), offset + len(read))
        if not more:
            break
        read += more
    return read
