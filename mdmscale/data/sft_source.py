"""Fine-tuning samples: documents of prepared shards, each a prompt and a response that may be masked."""

from pathlib import Path

import numpy as np

from mdmscale.config.data import DataSection
from mdmscale.data.held_out import held_out_indices, kept_before, kept_index
from mdmscale.data.order import sequence_of_sample
from mdmscale.data.sft_shard import SFTShard, fit_lengths, samples_path, why_none_fits
from mdmscale.data.shards import TokenStream, find_prefixes, fingerprint, open_shards
from mdmscale.data.source import describe, path_list
from mdmscale.diffusion.sample import Sample
from mdmscale.system.errors import UserError


class SFTSource:
    """Samples of prepared shards, each filled with EOS to a multiple of data.fill_multiple.

    The EOS are trained on. How many there are depends on the sample alone, so a sample is the same in every
    batch. Memory is O(held-out samples + left-out samples), because samples are looked up when they are read.
    """

    def __init__(
        self,
        data: DataSection,
        seed: int,
        vocab_size: int,
        eos_token_id: int | None,
        mask_token_id: int | None = None,
    ) -> None:
        if data.fill_multiple and eos_token_id is None:
            raise UserError(
                f"data.fill_multiple = {data.fill_multiple} fills with EOS, but the tokenizer has none"
            )
        self._seed = seed
        self._fill = Fill(data.fill_multiple, data.sequence_length, eos_token_id or 0)
        prefixes = find_prefixes(path_list(data))
        shards = open_shards(prefixes)
        self._stream = TokenStream(shards, vocab_size, mask_token_id)
        self._stream.check_token_ids()
        self._shards = [SFTShard(shard) for shard in shards]
        for each in self._shards:
            _check_train_on(data, each)
        self._longest, self._truncates = data.sequence_length, data.too_long == "truncate"
        left_out = _left_out(data, self._shards)
        self._fitting_before = kept_before(left_out)
        num_fitting = self._stream.num_documents - len(left_out)
        self._held_out = held_out_indices(num_fitting, data.held_out, "samples")
        self._kept_before = kept_before(self._held_out)
        self.num_held_out = len(self._held_out)
        self.num_train = num_fitting - self.num_held_out
        if not self.num_train:
            raise UserError(f"data.path = {data.path!r}: no sample is left; {why_none_fits(data.too_long)}")
        self.fingerprint = _fingerprint(prefixes, data)
        self.description = describe(data, self.fingerprint)

    def train_sample(self, index: int) -> Sample:
        number = sequence_of_sample(index, self.num_train, self._seed)
        return self._sample(kept_index(self._kept_before, number))

    def held_out_sample(self, index: int) -> Sample:
        return self._sample(int(self._held_out[index]))

    def _sample(self, fitting: int) -> Sample:
        """The sample with number `fitting` among those that data.too_long does not leave out."""
        document = kept_index(self._fitting_before, fitting)
        owner, local = self._stream.owner_of(document)
        start, stop = self._stream.document_span(owner, local)
        prompt_length, prefix = self._shards[owner].prompt_length(local), self._shards[owner].tokens.prefix
        length = min(stop - start, self._longest)
        if length < stop - start and not self._truncates:
            raise UserError(
                f"{prefix}: sample {local} has {stop - start} tokens, more than data.sequence_length = "
                f"{self._longest}, though {samples_path(prefix)} says that none has; delete that file"
            )
        if not 0 <= prompt_length < length:
            raise UserError(
                f"{prefix}: sample {local} has no response in its first {length} tokens, though "
                f"{samples_path(prefix)} says that it has; delete that file"
            )
        sample = Sample(self._stream.read(start, start + length), self._shards[owner].trained(local, length))
        return self._fill(sample)


class Fill:
    """Fills samples with EOS to a multiple of `multiple` (0: no fill), but never beyond `longest`."""

    def __init__(self, multiple: int, longest: int, eos_token_id: int) -> None:
        self._multiple, self._longest, self._eos_token_id = multiple, longest, eos_token_id

    def __call__(self, sample: Sample) -> Sample:
        if not self._multiple:
            return sample
        length = len(sample.token_ids)
        num_eos = max(0, min(-(-length // self._multiple) * self._multiple, self._longest) - length)
        return Sample(
            np.concatenate([sample.token_ids, np.full(num_eos, self._eos_token_id, dtype=np.int64)]),
            np.concatenate([sample.eligible, np.ones(num_eos, dtype=bool)]),
        )


def _check_train_on(data: DataSection, shard: SFTShard) -> None:
    """Refuse a shard whose conversations are not trained as data.train_on says."""
    prepared = shard.train_on()
    if prepared not in (None, data.train_on):
        raise UserError(
            f"data.train_on = {data.train_on}, but {shard.tokens.prefix} was prepared with --train-on "
            f"{prepared}; set it so, or prepare the data again"
        )


def _left_out(data: DataSection, shards: list[SFTShard]) -> np.ndarray:
    """The numbers of the samples that data.too_long leaves out, ascending: int64 [left out].

    It reads the lengths only of shards that may have such samples.
    """
    left_out, offset = [np.empty(0, dtype=np.int64)], 0
    for shard in shards:
        longest = shard.longest()
        if longest is None or longest > data.sequence_length:
            for start, prompt_lengths, lengths in shard.all_lengths():
                first = offset + start
                left_out.append(first + np.flatnonzero(_fit(data, first, prompt_lengths, lengths) == 0))
        offset += shard.tokens.num_documents
    return np.concatenate(left_out)


def _fit(data: DataSection, first: int, prompt_lengths: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The lengths of samples `first`, ... under data.too_long, int64 [samples]; 0 for those left out.

    Raises:
        UserError: for a sample without a response, or, under data.too_long = error, one that is too long.
    """
    empty = np.flatnonzero((prompt_lengths < 0) | (prompt_lengths >= lengths))
    if len(empty):
        raise UserError(
            f"data.path = {data.path!r}: sample {first + empty[0]} has no response; prepare the data again"
        )
    longest = int(lengths.max())
    if data.too_long == "error" and longest > data.sequence_length:
        raise UserError(
            f"data.path = {data.path!r}: sample {first + int(lengths.argmax())} has {longest} tokens, more "
            f"than data.sequence_length = {data.sequence_length}; raise it or set data.too_long"
        )
    return fit_lengths(prompt_lengths, lengths, data.sequence_length, data.too_long)


def _fingerprint(prefixes: list[Path], data: DataSection) -> str:
    names = ("kind", "sequence_length", "held_out", "fill_multiple", "too_long")
    return fingerprint(prefixes, {name: getattr(data, name) for name in names})
