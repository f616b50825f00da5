"""Shards on disk as one stream of tokens: find, read, check and fingerprint them."""

import glob
import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

from mdmscale.data.indexed import CHECKED_SEQUENCES, IndexedShard, bin_path
from mdmscale.system.errors import UserError
from mdmscale.system.links import check_links

_CHECKED_TOKENS = 64 * 2**20
_HASHED_BYTES = 64 * 2**20
_HASHED_BYTES_OF_A_FILE = 4096  # at least, however many files there are
_BLOCK = 2**20


def find_prefixes(paths: list[str]) -> list[Path]:
    """The prefixes of the shards that `paths` name: prefixes, .bin or .idx files, folders or globs.

    They are in the order of `paths`, and within a folder or glob in the order of their names.

    Raises:
        UserError: where a path names no shard, two paths name the same one, or a link leaves a folder.
    """
    prefixes: dict[Path, None] = {}  # an ordered set, because there may be many thousands
    for path in paths:
        found = _prefixes_of(path)
        repeated = [prefix for prefix in found if prefix in prefixes]
        if repeated:
            raise UserError(f"data.path: shard {repeated[0]} is named twice")
        prefixes.update(dict.fromkeys(found))
    if not prefixes:
        raise UserError("data.path: names no shard")
    return list(prefixes)


def _prefixes_of(path: str) -> list[Path]:
    if Path(path).is_dir():
        check_links(Path(path))
        files = sorted(str(file) for file in Path(path).glob("*.idx"))
        hint = "no .idx in this folder; tools/prepare_data.py writes shards"
    elif glob.has_magic(path):
        files = sorted(file for file in glob.glob(path) if file.endswith((".bin", ".idx")))
        hint = "no .bin or .idx file matches; tools/prepare_data.py writes them"
    else:
        ends = ("", ".idx", ".bin") if path.endswith((".idx", ".bin")) else (".idx", ".bin")
        files = [path] if any(Path(path + end).is_file() for end in ends) else []
        hint = "no such shard, file or folder; tools/prepare_data.py writes shards"
        if Path(path).is_file():
            hint = (
                "no token shard; prepare the file first (python tools/prepare_data.py FILE --tokenizer ... "
                "--output DIR) and give that DIR"
            )
    if not files:
        raise UserError(f"data.path = {path!r}: {hint}")
    return list(dict.fromkeys(Path(file.removesuffix(".bin").removesuffix(".idx")) for file in files))


def open_shards(prefixes: list[Path]) -> list[IndexedShard]:
    """The shards, each checked at its ends and between them. Fewer shards get more checks each."""
    return [IndexedShard(prefix, CHECKED_SEQUENCES // len(prefixes)) for prefix in prefixes]


class TokenStream:
    """The tokens of all shards, concatenated. Every id that is read is checked.

    It must be in the vocabulary, and it must not be `mask_token_id`, which clean text does not hold.
    """

    def __init__(self, shards: list[IndexedShard], vocab_size: int, mask_token_id: int | None = None) -> None:
        self.shards = shards
        self._vocab_size = vocab_size
        self._mask_token_id = -1 if mask_token_id is None else mask_token_id  # -1: refused already
        self._token_offsets = _offsets([shard.num_tokens for shard in shards])  # [shards + 1]
        self._document_offsets = _offsets([shard.num_documents for shard in shards])  # [shards + 1]
        self.num_tokens = int(self._token_offsets[-1])
        self.num_documents = int(self._document_offsets[-1])

    def document_starts(self, documents: np.ndarray) -> np.ndarray:
        """The offsets in the stream at which `documents` (ascending) begin. int64 [n] -> int64 [n]."""
        edges = np.searchsorted(documents, self._document_offsets)  # [shards + 1]
        edges[-1] = len(documents)  # document `num_documents` begins where the stream ends
        starts = np.empty(len(documents), dtype=np.int64)
        for owner in np.flatnonzero(np.diff(edges)):
            mine = slice(edges[owner], edges[owner + 1])
            local = self.shards[owner].document_starts(documents[mine] - self._document_offsets[owner])
            starts[mine] = local + self._token_offsets[owner]
        return starts

    def owner_of(self, document: int) -> tuple[int, int]:
        """(number of the shard that holds a document, the document's number in that shard)."""
        owner = int(np.searchsorted(self._document_offsets, document, side="right")) - 1
        return owner, document - int(self._document_offsets[owner])

    def document_span(self, owner: int, document: int) -> tuple[int, int]:
        """(start, stop) in the stream of document `document` of shard `owner`."""
        start, stop = self.shards[owner].document_span(document)
        offset = int(self._token_offsets[owner])
        return offset + start, offset + stop

    def read(self, start: int, stop: int) -> np.ndarray:
        """The ids of tokens start..stop - 1 of the stream, int64 [stop - start].

        Raises:
            UserError: for an id outside the vocabulary or the mask token, naming the shard.
        """
        owner = int(np.searchsorted(self._token_offsets, start, side="right")) - 1
        pieces = []
        while start < stop:
            offset, end = int(self._token_offsets[owner]), int(self._token_offsets[owner + 1])
            piece = self.shards[owner].tokens(start - offset, min(stop, end) - offset)
            self._check(piece, self.shards[owner])
            pieces.append(piece)
            start, owner = min(stop, end), owner + 1
        return np.concatenate(pieces) if pieces else np.empty(0, dtype=np.int64)

    def check_token_ids(self) -> None:
        """Check all ids; where there are more than 64M, check 64M of them in evenly spaced blocks.

        Raises:
            UserError: naming the shard, the id and the size of the vocabulary.
        """
        for start, stop in _blocks(self.num_tokens, _CHECKED_TOKENS):
            self.read(start, stop)

    def _check(self, ids: np.ndarray, shard: IndexedShard) -> None:
        if len(ids) and (ids.max() >= self._vocab_size or ids.min() < 0):
            wrong = int(ids.max()) if ids.max() >= self._vocab_size else int(ids.min())
            raise UserError(
                f"{bin_path(shard.prefix)}: token id {wrong} is outside the model's vocabulary of "
                f"{self._vocab_size}; was it prepared with another tokenizer?"
            )
        if num_masks := int(np.count_nonzero(ids == self._mask_token_id)):
            raise UserError(
                f"{bin_path(shard.prefix)}: holds the model's mask token (id {self._mask_token_id}) as "
                f"{num_masks} of the {len(ids)} tokens just read, so training would take clean text for "
                "masked; prepare it again with a tokenizer that declares this mask token (of an imported "
                "model, say) and tools/prepare_data.py --mask-in-text reencode or drop"
            )


def _offsets(counts: list[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def _blocks(total: int, limit: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of blocks that cover range(total).

    Beyond `limit` items they cover about `limit` of them, evenly spaced from the first item to the last.
    """
    if total <= limit:
        for start in range(0, total, _BLOCK):
            yield start, min(start + _BLOCK, total)
        return
    count = max(2, -(-limit // _BLOCK))
    size = limit // count
    for number in range(count):
        start = number * (total - size) // (count - 1)
        yield start, start + size


def fingerprint(prefixes: list[Path], options: dict[str, object]) -> str:
    """16 hex digits that identify the content of the shards and the options that make samples from it.

    The paths of the shards do not count. Where the files have more than 64 MiB in all, each file is hashed by
    its size and evenly spaced blocks: its share of 64 MiB, but at least 4 KiB.
    """
    digest = hashlib.sha256(repr(sorted(options.items())).encode())
    sizes: dict[str, int] = {}
    for prefix in prefixes:
        for name in (f"{prefix}.idx", f"{prefix}.bin", str(prompts_path(prefix)), str(trained_path(prefix))):
            with suppress(FileNotFoundError):  # only SFT shards have prompts, and some have marks
                sizes[name] = os.stat(name).st_size
    total = sum(sizes.values())
    for name, size in sizes.items():
        share = size * _HASHED_BYTES // max(_HASHED_BYTES, total)
        _hash_file(name, size, max(_HASHED_BYTES_OF_A_FILE, share), digest)
    return digest.hexdigest()[:16]


def _hash_file(name: str, size: int, limit: int, digest: "hashlib._Hash") -> None:
    digest.update(f"{name[name.rindex('.') :]} {size}\n".encode())
    with open(name, "rb") as file:
        for start, stop in _blocks(size, limit):
            file.seek(start)
            digest.update(file.read(stop - start))


def prompts_path(prefix: Path) -> Path:
    """The file with the prompt length of each sample of an SFT shard."""
    return Path(f"{prefix}.prompts.npy")


def trained_path(prefix: Path) -> Path:
    """The file that says which tokens of an SFT shard are trained. (A glob would take `.bin` for a shard.)"""
    return Path(f"{prefix}.trained")
