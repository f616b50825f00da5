"""Token shards in Megatron's indexed format: `<prefix>.bin` holds token ids, `<prefix>.idx` documents.

The .idx file is little-endian: magic, version u64, dtype code u8, number of sequences u64, number of document
boundaries u64, sequence lengths i32[], byte pointers i64[], document index i64[]. The document index has the
first sequence of each document and, at the end, the number of sequences. A document may have several
sequences.
"""

import mmap
import os
import struct
from array import array
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Self

import numpy as np

from mdmscale.system.errors import UserError

_MAGIC = b"MMIDIDX\x00\x00"
_VERSION = 1
_HEADER = struct.Struct("<9sQBQQ")
_TWO_INT64 = struct.Struct("<qq")
_DTYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 6: "<f8", 7: "<f4", 8: "<u2"}
_CODES = {np.dtype(name): code for code, name in _DTYPES.items()}
_BYTES_PER_SEQUENCE = 4 + 8
CHECKED_SEQUENCES = 65536  # when shards are opened, over all of them together, and as many documents


def bin_path(prefix: Path) -> Path:
    return Path(f"{prefix}.bin")


def idx_path(prefix: Path) -> Path:
    return Path(f"{prefix}.idx")


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest dtype that Megatron would choose for ids below `vocab_size`."""
    return np.dtype("<u2" if vocab_size < 65500 else "<i4")


class IndexedWriter:
    """Writes one shard, one sequence per document. Used with `with`, it leaves no file if the block fails."""

    def __init__(self, prefix: Path, dtype: np.dtype) -> None:
        self.prefix = prefix
        self.dtype = dtype
        self.num_tokens = 0
        self._lengths = array("i")
        self._bin = bin_path(prefix).open("wb")

    @property
    def num_documents(self) -> int:
        return len(self._lengths)

    def add_document(self, token_ids: np.ndarray) -> None:
        """Append the ids of a document, integers [length] that fit the dtype of the shard."""
        assert not len(token_ids) or token_ids.max() <= np.iinfo(self.dtype).max, "the id would wrap"
        self._bin.write(token_ids.astype(self.dtype, copy=False).tobytes())
        self._lengths.append(len(token_ids))
        self.num_tokens += len(token_ids)

    def close(self) -> None:
        """Finish the .bin file and write the .idx file."""
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
    """Write the .idx file of contiguous documents with `lengths` [documents], one sequence each."""
    lengths = lengths.astype("<i4", copy=False)
    ends = np.cumsum(lengths, dtype="<i8") * dtype.itemsize
    pointers = ends - lengths.astype("<i8") * dtype.itemsize
    documents = np.arange(len(lengths) + 1, dtype="<i8")
    header = _HEADER.pack(_MAGIC, _VERSION, _CODES[dtype], len(lengths), len(documents))
    with idx_path(prefix).open("wb") as file:
        file.writelines([header, lengths.data, pointers.data, documents.data])


@dataclass(frozen=True)
class _Index:
    lengths: np.ndarray  # i32 [sequences], in tokens
    pointers: np.ndarray  # i64 [sequences], in bytes
    documents: np.ndarray  # i64 [documents + 1]


class IndexedShard:
    """Reads one shard whose sequences are contiguous, as Megatron writes them.

    Nothing stays open or mapped between reads, and no array has the size of the shard. So thousands of shards
    cost neither file descriptors nor memory, and the page cache makes repeated reads cheap. The constructor
    checks `num_checked` of the sequences and as many documents; every entry is checked when it is read, so a
    damaged one is never trained on.

    Raises:
        UserError: in the constructor, where a file is missing, empty, cut short or not in this format; when
            reading, where an entry of the index cannot be right.
    """

    def __init__(self, prefix: Path, num_checked: int = CHECKED_SEQUENCES) -> None:
        self.prefix = prefix
        # Strings, because to make a Path takes as long as a read.
        self._idx, self._bin = f"{prefix}.idx", f"{prefix}.bin"
        raw = _map(self._idx)
        code, self._num_sequences, boundaries = _parse_header(raw, self._idx)
        self.dtype = _token_dtype_of(code, self._idx)
        self.num_documents = boundaries - 1
        self._check_idx_size(len(raw))
        num_bytes = self._count_bytes()
        self.num_tokens = num_bytes // self.dtype.itemsize
        self._check_index(self._arrays(raw), num_bytes, max(2, num_checked))

    def document_starts(self, documents: np.ndarray) -> np.ndarray:
        """The offsets, in tokens of the shard, at which `documents` begin. int64 [n] -> int64 [n].

        `documents` ascend. Document number `num_documents` begins where the shard ends.
        """
        index = self._arrays(_map(self._idx))
        sequences = index.documents[documents]
        self._check((sequences >= 0) & (sequences <= self._num_sequences), documents)
        inner = sequences < self._num_sequences
        starts = np.full(len(sequences), self.num_tokens, dtype=np.int64)
        starts[inner] = index.pointers[sequences[inner]] // self.dtype.itemsize
        self._check(self._fit(index, sequences[inner]), documents[inner])
        self._check(np.diff(starts, prepend=0) >= 0, documents)
        return starts

    def document_span(self, document: int) -> tuple[int, int]:
        """`document_starts` of a document and of the next one. It reads, because to map takes longer."""
        count, itemsize = self._num_sequences, self.dtype.itemsize
        offset = _HEADER.size + _BYTES_PER_SEQUENCE * count + 8 * document
        first, end = _TWO_INT64.unpack(read_at(self._idx, 16, offset))
        if not 0 <= first <= end <= count:
            self._refuse(document)
        if first == count:  # nothing but empty documents follows
            return self.num_tokens, self.num_tokens
        lengths = np.frombuffer(read_at(self._idx, 4 * (end - first), _HEADER.size + 4 * first), "<i4")
        starts = np.frombuffer(
            read_at(self._idx, 8 * (min(end + 1, count) - first), _HEADER.size + 4 * count + 8 * first), "<i8"
        )
        start = int(starts[0])
        stop = self.num_tokens * itemsize if end == count else int(starts[-1])
        announced = int(lengths.sum(dtype=np.int64)) * itemsize
        if start % itemsize or start < 0 or stop - start != announced or (end > first and lengths.min() < 0):
            self._refuse(document)
        return start // itemsize, stop // itemsize

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """The ids of tokens start..stop - 1 of the shard, int64 [stop - start].

        Raises:
            UserError: where the shard does not have them.
        """
        if not 0 <= start <= stop <= self.num_tokens:
            raise UserError(f"{self._bin}: has {self.num_tokens} tokens, and no tokens {start} to {stop}")
        itemsize = self.dtype.itemsize
        raw = read_at(self._bin, (stop - start) * itemsize, start * itemsize)
        return np.frombuffer(raw, self.dtype).astype(np.int64)

    def _fit(self, index: _Index, sequences: np.ndarray) -> np.ndarray:
        """Whether each of `sequences` lies where tokens can, and ends where the next one begins: bool [n]."""
        ends = np.full(len(sequences), self.num_tokens * self.dtype.itemsize, dtype=np.int64)
        inner = sequences + 1 < self._num_sequences
        ends[inner] = index.pointers[sequences[inner] + 1]
        starts, lengths = index.pointers[sequences], index.lengths[sequences].astype(np.int64)
        lies_well = (starts >= 0) & (starts % self.dtype.itemsize == 0) & (lengths >= 0)
        return lies_well & (starts + lengths * self.dtype.itemsize == ends)

    def _check(self, fits: np.ndarray, documents: np.ndarray) -> None:
        if not fits.all():
            self._refuse(int(documents[np.argmin(fits)]))

    def _refuse(self, document: int) -> NoReturn:
        raise UserError(
            f"{self._idx}: damaged: its entries for document {document} cannot be right; write it again"
        )

    def _arrays(self, raw: mmap.mmap | bytes) -> _Index:
        count, offset = self._num_sequences, _HEADER.size
        lengths = np.frombuffer(raw, "<i4", count, offset)
        pointers = np.frombuffer(raw, "<i8", count, offset + 4 * count)
        documents = np.frombuffer(raw, "<i8", self.num_documents + 1, offset + _BYTES_PER_SEQUENCE * count)
        return _Index(lengths, pointers, documents)

    def _check_idx_size(self, size: int) -> None:
        needed = _HEADER.size + _BYTES_PER_SEQUENCE * self._num_sequences + 8 * (self.num_documents + 1)
        if size < needed:
            raise UserError(f"{self._idx}: cut short: {size} bytes, but its header announces {needed}")

    def _count_bytes(self) -> int:
        """The size of the .bin file."""
        try:
            num_bytes = os.stat(self._bin).st_size
        except FileNotFoundError:
            raise UserError(f"{self._bin}: no such file, though its .idx is there") from None
        except OSError as error:
            raise UserError(f"{self._bin}: cannot be read: {error.strerror}") from None
        if not num_bytes or not self._num_sequences:
            raise UserError(f"{self._bin}: holds no tokens; leave the shard out or prepare it again")
        if num_bytes % self.dtype.itemsize:
            raise UserError(
                f"{self._bin}: {num_bytes} bytes are no whole number of tokens of {self.dtype.itemsize} "
                "bytes; it is cut short or from another shard"
            )
        return num_bytes

    def _check_index(self, index: _Index, num_bytes: int, num_checked: int) -> None:
        """Check that .idx and .bin belong together: at both ends, and at evenly spaced sequences between."""
        itemsize = self.dtype.itemsize
        announced = int(index.pointers[-1]) + int(index.lengths[-1]) * itemsize
        if announced != num_bytes:
            raise UserError(
                f"{self._bin}: {num_bytes} bytes, but {os.path.basename(self._idx)} announces {announced}; "
                "one of the two is cut short or from another shard"
            )
        if index.pointers[0] or not self._fit(index, _places(self._num_sequences, num_checked)).all():
            raise UserError(f"{self._idx}: its sequences do not lie one after the other; write it again")
        if index.documents[0] or index.documents[-1] != self._num_sequences:
            raise UserError(f"{self._idx}: its document index does not span its sequences; write it again")
        places = _places(self.num_documents, num_checked)
        ends = np.stack([index.documents[places], index.documents[places + 1]], axis=1).ravel()
        if (np.diff(ends, prepend=0) < 0).any() or (ends > self._num_sequences).any():
            raise UserError(f"{self._idx}: the documents of its index are not in order; write it again")


def _places(count: int, most: int) -> np.ndarray:
    """At most `most` evenly spaced numbers below `count`, the first and the last among them."""
    number = min(most, count)
    return np.arange(number) * (count - 1) // max(1, number - 1)


def _map(path: str) -> mmap.mmap | bytes:
    """The bytes of a file. They stay mapped for as long as something refers to them."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        is_empty = os.fstat(descriptor).st_size == 0  # an empty file cannot be mapped
        return b"" if is_empty else mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
    finally:
        os.close(descriptor)


def _parse_header(raw: mmap.mmap | bytes, path: str) -> tuple[int, int, int]:
    """(dtype code, number of sequences, number of document boundaries) of an .idx file."""
    if len(raw) < _HEADER.size:
        raise UserError(f"{path}: cut short or empty: {len(raw)} bytes, its header alone has {_HEADER.size}")
    magic, version, code, sequences, boundaries = _HEADER.unpack_from(raw)
    if magic != _MAGIC:
        raise UserError(f"{path}: not an index in Megatron's format (it begins with {magic!r})")
    if version != _VERSION:
        raise UserError(f"{path}: version {version} of the indexed format; only version {_VERSION} is known")
    if boundaries < 1:
        raise UserError(f"{path}: has no document index")
    return code, sequences, boundaries


def _token_dtype_of(code: int, path: str) -> np.dtype:
    dtype = np.dtype(_DTYPES[code]) if code in _DTYPES else None
    if dtype is None or dtype.kind == "f":
        raise UserError(f"{path}: dtype code {code} is not one of token ids (1 to 5 and 8)")
    return dtype


def read_at(path: str, size: int, offset: int) -> bytes:
    """`size` bytes of a file from `offset` on. It reads in a loop, because some file systems return pieces.

    Raises:
        UserError: where the file ends earlier or is gone.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; was it moved during the run?") from None
    try:
        read = os.pread(descriptor, size, offset)
        while len(read) < size:
            more = os.pread(descriptor, size - len(read), offset + len(read))
            if not more:
                raise UserError(f"{path}: ends before byte {offset + size}; was it replaced during the run?")
            read += more
    finally:
        os.close(descriptor)
    return read
