"""Write encoded documents to a folder of shards of bounded size, and summarise them."""

from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from mdmscale.data.indexed import IndexedWriter, token_dtype
from mdmscale.data.preparation.encode import EncodedBatch


class ShardSetWriter:
    """Write `shard-00000`, ... of at most `shard_tokens` tokens each; a longer document gets its own.

    All ids must be below `vocab_size`, which is more than the number of tokens where their ids have gaps.
    """

    def __init__(self, folder: Path, vocab_size: int, shard_tokens: int) -> None:
        self._folder = folder
        self._dtype = token_dtype(vocab_size)
        self._shard_tokens = shard_tokens
        self._shard: IndexedWriter | None = None
        self._num_shards = 0
        self._text_bytes = 0
        self._counts = np.zeros(vocab_size, dtype=np.int64)  # [vocab], how often each token occurs
        self.num_documents = self.num_dropped = self.num_reencoded = 0

    def add(self, batch: EncodedBatch) -> None:
        """Append the documents of `batch`."""
        for token_ids in batch.documents():
            self._shard_for(len(token_ids)).add_document(token_ids)
        self.num_documents += len(batch.lengths)
        self.num_dropped += batch.num_dropped
        self.num_reencoded += batch.num_reencoded
        self._text_bytes += batch.text_bytes
        self._counts += np.bincount(batch.token_ids, minlength=len(self._counts))

    def summary(self) -> dict[str, object]:
        """What was written. The entropy is that of the token frequencies, in nats per token."""
        num_tokens = int(self._counts.sum())
        return {
            "num_documents": self.num_documents,
            "num_tokens": num_tokens,
            "num_bytes": self._text_bytes,
            "tokens_per_byte": num_tokens / max(1, self._text_bytes),
            "unigram_entropy": unigram_entropy(self._counts),
            "vocab_size": len(self._counts),
            "num_shards": self._num_shards,
        }

    def _shard_for(self, length: int) -> IndexedWriter:
        shard = self._shard
        if shard is not None and shard.num_tokens and shard.num_tokens + length > self._shard_tokens:
            shard.close()
            shard = None
        if shard is None:
            shard = self._shard = IndexedWriter(self._folder / f"shard-{self._num_shards:05d}", self._dtype)
            self._num_shards += 1
        return shard

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shard is not None:
            self._shard.close()


def unigram_entropy(counts: np.ndarray) -> float:
    """The entropy, in nats, of the distribution proportional to `counts` [vocab]."""
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())
