"""Fine-tuning samples: one document of a prepared shard each, a prompt and a response that may be masked."""

from pathlib import Path

import numpy as np

from mdmscale.config import DataSection
from mdmscale.data.held_out import held_out_places, kept_before, kept_place
from mdmscale.data.indexed import IndexedShard
from mdmscale.data.order import sequence_of_sample
from mdmscale.data.sft import fit_lengths
from mdmscale.data.shards import TokenStream, find_prefixes, fingerprint, prompts_path
from mdmscale.data.source import Sample, describe, path_list
from mdmscale.errors import UserError


class SFTSource:
    """Samples of prepared shards, each filled with trained EOS to a multiple of data.fill_multiple.

    The fill depends on the sample alone, so a sample is the same in every batch. Memory is a few
    integers a sample.
    """

    def __init__(self, data: DataSection, seed: int, vocab_size: int, eos_token_id: int | None) -> None:
        if data.fill_multiple and eos_token_id is None:
            raise UserError(
                f"data.fill_multiple = {data.fill_multiple} fills with EOS, but the tokenizer has none"
            )
        self._seed = seed
        self._fill = _Fill(data.fill_multiple, data.sequence_length, eos_token_id or 0)
        prefixes = find_prefixes(path_list(data))
        shards = [IndexedShard(prefix) for prefix in prefixes]
        self._stream = TokenStream(shards, vocab_size)
        self._stream.check_token_ids()
        prompt_lengths = np.concatenate([_read_prompt_lengths(shard) for shard in shards])  # [documents]
        bounds = self._stream.document_starts(np.arange(self._stream.num_documents + 1))
        lengths = _fit(data, prompt_lengths, np.diff(bounds))
        kept = np.flatnonzero(lengths)
        self._starts, self._lengths, self._prompt_lengths = (
            bounds[:-1][kept],
            lengths[kept],
            prompt_lengths[kept],
        )
        self._held_out = held_out_places(len(kept), data.held_out, "samples")
        self._kept_before = kept_before(self._held_out)
        self.num_held_out = len(self._held_out)
        self.num_train = len(kept) - self.num_held_out
        if not self.num_train:
            raise UserError(f"data.path = {data.path!r}: no sample is left (data.too_long = {data.too_long})")
        self.fingerprint = _fingerprint(prefixes, data)
        self.description = describe(data, self.fingerprint)

    def train_sample(self, index: int) -> Sample:
        number = sequence_of_sample(index, self.num_train, self._seed)
        return self._sample(kept_place(self._kept_before, number))

    def held_out_sample(self, index: int) -> Sample:
        return self._sample(int(self._held_out[index]))

    def _sample(self, place: int) -> Sample:
        start, length = int(self._starts[place]), int(self._lengths[place])
        token_ids = self._fill(self._stream.read(start, start + length))
        return Sample(token_ids, np.arange(len(token_ids)) >= self._prompt_lengths[place])


class _Fill:
    """Fills ids with EOS to a multiple of `multiple` (0: not at all), never beyond `longest`."""

    def __init__(self, multiple: int, longest: int, eos_token_id: int) -> None:
        self._multiple, self._longest, self._eos_token_id = multiple, longest, eos_token_id

    def __call__(self, token_ids: np.ndarray) -> np.ndarray:
        if not self._multiple:
            return token_ids
        length = min(-(-len(token_ids) // self._multiple) * self._multiple, self._longest)
        return np.concatenate(
            [token_ids, np.full(length - len(token_ids), self._eos_token_id, dtype=np.int64)]
        )


def _read_prompt_lengths(shard: IndexedShard) -> np.ndarray:
    """The prompt length of each of the shard's samples, int64 [documents]."""
    path = prompts_path(shard.prefix)
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; {shard.prefix} is no SFT shard (tools/prepare_data.py --kind sft)"
        )
    try:
        lengths = np.load(path)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    if lengths.shape != (shard.num_documents,) or lengths.dtype.kind not in "iu":
        raise UserError(
            f"{path}: expected {shard.num_documents} integers, found {lengths.dtype} of shape {lengths.shape}"
        )
    return lengths.astype(np.int64)


def _fit(data: DataSection, prompt_lengths: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Lengths after data.too_long was applied, int64 [samples]; 0 where a sample is dropped."""
    empty = np.flatnonzero((prompt_lengths < 0) | (prompt_lengths >= lengths))
    if len(empty):
        raise UserError(
            f"data.path = {data.path!r}: sample {empty[0]} has no response; prepare the data again"
        )
    longest = int(lengths.max())
    if data.too_long == "error" and longest > data.sequence_length:
        raise UserError(
            f"data.path = {data.path!r}: sample {int(lengths.argmax())} has {longest} tokens, more than "
            f"data.sequence_length = {data.sequence_length}; raise it or set data.too_long"
        )
    return fit_lengths(prompt_lengths, lengths, data.sequence_length, data.too_long)


def _fingerprint(prefixes: list[Path], data: DataSection) -> str:
    names = ("kind", "sequence_length", "held_out", "fill_multiple", "too_long")
    return fingerprint(prefixes, {name: getattr(data, name) for name in names})
