"""Encode SFT data to a prepared shard. See sft_record.py for the shapes that a line can have."""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from mdmscale.data.indexed import IndexedWriter, bin_path, idx_path, token_dtype
from mdmscale.data.preparation.folders import DEFAULT_SPLIT
from mdmscale.data.preparation.formats import read_records
from mdmscale.data.preparation.inputs import Input
from mdmscale.data.preparation.sft_record import EncodedSample, encode_record
from mdmscale.data.sft_shard import fit_lengths, samples_path, write_samples
from mdmscale.data.shards import prompts_path
from mdmscale.models.mask_spelling import MaskInText
from mdmscale.models.tokenizer import num_token_ids
from mdmscale.system.errors import UserError
from mdmscale.system.folders import published_files

_FILES = (bin_path, prompts_path, samples_path, idx_path)  # the index last: it makes the shard visible


@dataclass(frozen=True)
class EncodeSummary:
    """How much `encode_sft` has written, cut and left out."""

    num_samples: int
    num_truncated: int
    num_dropped: int
    num_tokens: int
    num_response_tokens: int


def encode_sft(
    inputs: Sequence[Input],
    tokenizer: Any,
    prefix: Path,
    *,
    sequence_length: int,
    too_long: str,
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

    Raises:
        UserError: naming file and line, where a line is unreadable, of unknown shape or without a response.
    """
    if tokenizer.eos_token_id is None:
        raise UserError("the tokenizer has no EOS token, but responses must end with one; set its eos_token")
    with published_files([path_of(prefix) for path_of in _FILES]) as folder:
        samples = _encode_inputs(inputs, tokenizer, split, mask_in_text)
        summary = _write_shard(samples, tokenizer, folder / prefix.name, sequence_length, too_long)
        if not summary.num_samples:
            names = ", ".join(map(str, inputs))
            if summary.num_dropped:
                raise UserError(
                    f"{names}: no sample is left ({summary.num_dropped} dropped, too_long = {too_long}, "
                    f"mask_in_text = {mask_in_text})"
                )
            raise UserError(f"{names}: is empty; there is no sample to write")
        return summary


def _write_shard(
    samples: Iterator[tuple[EncodedSample | None, str]],
    tokenizer: Any,
    prefix: Path,
    sequence_length: int,
    too_long: str,
) -> EncodeSummary:
    prompt_lengths = array("i")
    num_truncated = num_dropped = longest = 0
    with IndexedWriter(prefix, token_dtype(num_token_ids(tokenizer))) as writer:
        for sample, where in samples:
            length = 0 if sample is None else _fitted(sample, where, sequence_length, too_long)
            num_dropped += length == 0
            if sample is not None and length:
                num_truncated += length < len(sample.token_ids)
                writer.add_document(sample.token_ids[:length])
                prompt_lengths.append(sample.prompt_length)
                longest = max(longest, length)
    write_samples(prefix, np.asarray(prompt_lengths), longest)
    num_response_tokens = writer.num_tokens - sum(prompt_lengths)
    return EncodeSummary(
        len(prompt_lengths), num_truncated, num_dropped, writer.num_tokens, num_response_tokens
    )


def _encode_inputs(
    inputs: Sequence[Input], tokenizer: Any, split: str, mask_in_text: MaskInText
) -> Iterator[tuple[EncodedSample | None, str]]:
    columns = SpinnerColumn(), TextColumn("{task.completed:,.0f} samples encoded"), TimeElapsedColumn()
    with Progress(*columns, transient=True) as progress:
        task = progress.add_task("", total=None)
        for item in inputs:
            for record in read_records(item, split):
                yield encode_record(record, tokenizer, mask_in_text), record.where
                progress.advance(task)


def _fitted(sample: EncodedSample, where: str, sequence_length: int, too_long: str) -> int:
    length = len(sample.token_ids)
    if too_long == "error" and length > sequence_length:
        raise UserError(
            f"{where}: {length} tokens, more than the sequence length of {sequence_length}; "
            "raise it, or choose to truncate or drop long samples"
        )
    return int(fit_lengths(np.asarray(sample.prompt_length), np.asarray(length), sequence_length, too_long))
