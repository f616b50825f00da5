"""Encode SFT data to a prepared shard. See sft_record.py for the shapes that a line can have."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from mdmscale.config.data import SpecialTokens, TrainOn
from mdmscale.data.indexed import bin_path, idx_path, token_dtype
from mdmscale.data.preparation.folders import DEFAULT_SPLIT
from mdmscale.data.preparation.formats import read_records
from mdmscale.data.preparation.inputs import Input
from mdmscale.data.preparation.sft_record import EncodedSample, check_eos, encode_record
from mdmscale.data.sft_shard import SFTWriter, fit_lengths, samples_path, why_none_fits
from mdmscale.data.shards import prompts_path, trained_path
from mdmscale.models.mask_spelling import MaskInText
from mdmscale.models.tokenizer import num_token_ids
from mdmscale.system.errors import UserError
from mdmscale.system.folders import published_files

_FILES = (bin_path, prompts_path, samples_path, idx_path)  # the index last: it makes the shard visible

Samples = Iterator[tuple[EncodedSample | None, str]]  # None: left out, because it holds the mask token


@dataclass(frozen=True)
class EncodeSummary:
    """How much `encode_sft` has written, cut and left out."""

    num_samples: int
    num_truncated: int
    num_dropped: int
    num_tokens: int
    num_trained_tokens: int


def encode_sft(
    inputs: Sequence[Input],
    tokenizer: Any,
    prefix: Path,
    *,
    sequence_length: int,
    too_long: str,
    train_on: TrainOn = "last",
    special_tokens: SpecialTokens = "refuse",
    split: str = DEFAULT_SPLIT,
    mask_in_text: MaskInText = "error",
) -> EncodeSummary:
    """Encode inputs, in order, to the shard `prefix` (see sft_shard.py); write all of its files or none.

    Args:
        inputs: files whose format formats.py reads, and Hugging Face datasets, of which `split` is read.
        mask_in_text: what happens to samples that hold the mask token; see mask_spelling.py. Those left out
            count as dropped.
        too_long: what happens to samples longer than `sequence_length`. `error` refuses them, `drop` leaves
            them out, `truncate` cuts their responses (and adds no EOS after the cut) and leaves out those
            whose prompt leaves no room for a response.
        train_on: as data.train_on.
        special_tokens: as data.special_tokens.

    Raises:
        UserError: naming file and line, where a line is unreadable, of unknown shape or without a response.
    """
    check_eos(tokenizer)
    files = [path_of(prefix) for path_of in _FILES]
    samples = read_samples(
        inputs,
        tokenizer,
        train_on=train_on,
        special_tokens=special_tokens,
        split=split,
        mask_in_text=mask_in_text,
    )
    with published_files(files, optional=[trained_path(prefix)]) as folder:
        with SFTWriter(folder / prefix.name, token_dtype(num_token_ids(tokenizer)), train_on) as writer:
            num_truncated, num_dropped = _write(writer, samples, sequence_length, too_long)
            if not writer.num_samples:
                names = ", ".join(map(str, inputs))
                if not num_dropped:
                    raise UserError(f"{names}: is empty; there is no sample to write")
                why = why_none_fits(too_long)
                if mask_in_text != "error":
                    why += f", or choose another --mask-in-text than {mask_in_text}"
                raise UserError(f"{names}: no sample is left ({num_dropped} dropped): {why}")
        return EncodeSummary(
            writer.num_samples, num_truncated, num_dropped, writer.num_tokens, writer.num_trained
        )


def read_samples(
    inputs: Sequence[Input],
    tokenizer: Any,
    *,
    train_on: TrainOn,
    special_tokens: SpecialTokens,
    split: str = DEFAULT_SPLIT,
    mask_in_text: MaskInText = "error",
) -> Samples:
    """The samples of inputs, in order, each with its "file:line"; None for those that hold the mask token.

    Raises:
        UserError: as `encode_sft`.
    """
    for item in inputs:
        for record in read_records(item, split):
            yield encode_record(record, tokenizer, train_on, special_tokens, mask_in_text), record.where


def _write(writer: SFTWriter, samples: Samples, sequence_length: int, too_long: str) -> tuple[int, int]:
    """Write samples. Returns how many have been cut, and how many left out."""
    num_truncated = num_dropped = 0
    for sample, where in _with_progress(samples):
        length = 0 if sample is None else fitted_length(sample, where, sequence_length, too_long)
        num_dropped += length == 0
        if sample is not None and length:
            num_truncated += length < len(sample.token_ids)
            writer.add(sample.token_ids[:length], sample.trained[:length])
    return num_truncated, num_dropped


def _with_progress(samples: Samples) -> Samples:
    columns = SpinnerColumn(), TextColumn("{task.completed:,.0f} samples encoded"), TimeElapsedColumn()
    with Progress(*columns, transient=True) as progress:
        task = progress.add_task("", total=None)
        for sample in samples:
            yield sample
            progress.advance(task)


def fitted_length(sample: EncodedSample, where: str, longest: int, too_long: str) -> int:
    """The length to which a sample is cut; 0 where it is left out.

    Raises:
        UserError: for one that is too long, where `too_long` is error.
    """
    length, prompt_length = len(sample.token_ids), sample.prompt_length
    if too_long == "error" and length > longest:
        what, mend = f"{length} tokens, more than", "truncate or drop"
        if prompt_length >= longest:
            what, mend = f"the prompt alone has {prompt_length} tokens, so no response fits in", "drop"
        raise UserError(
            f"{where}: {what} the sequence length of {longest}; raise it, or choose to {mend} long samples"
        )
    fitted = int(fit_lengths(np.asarray(prompt_length), np.asarray(length), longest, too_long))
    # A cut that falls into a turn that is not trained moves back to the last trained token.
    return int(np.flatnonzero(sample.trained[:fitted])[-1]) + 1 if 0 < fitted < length else fitted
