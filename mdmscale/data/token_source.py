"""Pretraining samples: consecutive windows over the concatenated training documents of token shards."""

from pathlib import Path

import numpy as np

from mdmscale.config.data import DataSection
from mdmscale.data.held_out import held_out_indices
from mdmscale.data.order import sequence_of_sample
from mdmscale.data.shards import TokenStream, find_prefixes, fingerprint, open_shards
from mdmscale.data.source import describe, path_list
from mdmscale.diffusion.sample import Sample
from mdmscale.diffusion.uniforms import Stream, generator
from mdmscale.system.errors import UserError


class TokenSpans:
    """Some intervals of a token stream, read as one concatenation. Memory is O(intervals)."""

    def __init__(self, stream: TokenStream, starts: np.ndarray, stops: np.ndarray) -> None:
        self._stream = stream
        self._starts = starts  # int64 [intervals], offsets in the stream, ascending
        self._offsets = np.concatenate([[0], np.cumsum(stops - starts)])  # int64 [intervals + 1]
        self.num_tokens = int(self._offsets[-1])

    def read(self, start: int, stop: int) -> np.ndarray:
        """The ids of tokens start..stop - 1 of the concatenation, int64 [stop - start]."""
        interval = int(np.searchsorted(self._offsets, start, side="right")) - 1
        pieces = []
        while start < stop:
            end = min(stop, int(self._offsets[interval + 1]))
            shift = int(self._starts[interval] - self._offsets[interval])
            pieces.append(self._stream.read(start + shift, end + shift))
            start, interval = end, interval + 1
        return np.concatenate(pieces)


class TokenSource:
    """Sequence k is window k of the training documents. Windows cross documents, each of which ends with EOS.

    The last, incomplete window is not used. data.random_length_fraction of the training samples are cut to a
    random length. Held-out samples are never cut.
    """

    def __init__(
        self, data: DataSection, seed: int, vocab_size: int, mask_token_id: int | None = None
    ) -> None:
        self._length = data.sequence_length
        self._cut_fraction = data.random_length_fraction
        self._seed = seed
        prefixes = find_prefixes(path_list(data))
        stream = TokenStream(open_shards(prefixes), vocab_size, mask_token_id)
        stream.check_token_ids()
        self._train, self._held_out = split_stream(stream, data.held_out)
        self.num_train = self._train.num_tokens // self._length
        self.num_held_out = max(self._held_out.num_tokens // self._length, int(self._held_out.num_tokens > 0))
        if not self.num_train:
            raise UserError(
                f"data.sequence_length = {self._length}: longer than all {self._train.num_tokens} training "
                f"tokens of data.path = {data.path!r} ({self._held_out.num_tokens} more are held out); "
                "shorten it, or prepare more text"
            )
        self.fingerprint = _fingerprint(prefixes, data)
        self.description = describe(data, self.fingerprint)

    def train_sample(self, index: int) -> Sample:
        sequence = sequence_of_sample(index, self.num_train, self._seed)
        start = sequence * self._length
        length = cut_length(self._seed, index, self._length, self._cut_fraction)
        return _all_eligible(self._train.read(start, start + length))

    def held_out_sample(self, index: int) -> Sample:
        assert 0 <= index < self.num_held_out
        start = index * self._length
        return _all_eligible(self._held_out.read(start, min(start + self._length, self._held_out.num_tokens)))


def split_stream(stream: TokenStream, share: float) -> tuple[TokenSpans, TokenSpans]:
    """(training tokens, held-out tokens): a `share` of the documents, evenly spread, is held out."""
    places = held_out_indices(stream.num_documents, share, "documents")
    ends = np.stack([places, places + 1], axis=1)  # [held out, 2]
    starts, stops = stream.document_starts(ends.ravel()).reshape(-1, 2).T
    between = TokenSpans(stream, np.append(0, stops), np.append(starts, stream.num_tokens))
    return between, TokenSpans(stream, starts, stops)


def cut_length(seed: int, index: int, length: int, fraction: float) -> int:
    """The length of sample `index`: with probability `fraction` uniform on 1..length, otherwise `length`."""
    draws = generator(seed, Stream.CUT, index)
    if draws.random() >= fraction:
        return length
    return int(draws.integers(1, length, endpoint=True))


def _all_eligible(token_ids: np.ndarray) -> Sample:
    return Sample(token_ids, np.ones(len(token_ids), dtype=bool))


def _fingerprint(prefixes: list[Path], data: DataSection) -> str:
    names = ("kind", "sequence_length", "held_out", "random_length_fraction")
    return fingerprint(prefixes, {name: getattr(data, name) for name in names})
