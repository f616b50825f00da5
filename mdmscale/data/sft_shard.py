"""What an SFT shard has in addition to its tokens: the prompt length of each sample, and the longest length.

`<prefix>.prompts.npy` holds the prompt lengths. `<prefix>.samples.json` ({"num_samples", "longest"}) states
that every sample has a response, and how many tokens the longest sample has. With it, opening a large data
set need not read every length. Without it, all lengths of the shard are read.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mdmscale.data.indexed import IndexedShard, read_at
from mdmscale.data.shards import prompts_path
from mdmscale.system.errors import UserError

_SAMPLES_AT_ONCE = 2**20


def samples_path(prefix: Path) -> Path:
    """The file that says how long the samples of an SFT shard are."""
    return Path(f"{prefix}.samples.json")


def write_samples(prefix: Path, prompt_lengths: np.ndarray, longest: int) -> None:
    """Write the prompt lengths [samples] of a shard, each shorter than its sample, and the longest length."""
    np.save(prompts_path(prefix), prompt_lengths.astype(np.int32, copy=False))
    facts = {"num_samples": len(prompt_lengths), "longest": longest}
    samples_path(prefix).write_text(json.dumps(facts) + "\n")


def fit_lengths(prompt_lengths: np.ndarray, lengths: np.ndarray, longest: int, too_long: str) -> np.ndarray:
    """The lengths of samples after those beyond `longest` are cut or dropped (length 0): int64 [samples]."""
    if too_long == "truncate":
        return np.where(prompt_lengths < longest, np.minimum(lengths, longest), 0)
    return np.where(lengths <= longest, lengths, 0)


class SFTShard:
    """The samples of a shard. They are read on demand, so memory and opening time do not grow with them.

    Raises:
        UserError: where the prompt lengths are missing, damaged or those of another shard.
    """

    def __init__(self, tokens: IndexedShard) -> None:
        self.tokens = tokens
        path = prompts_path(tokens.prefix)
        if not path.is_file():
            raise UserError(
                f"{path}: no such file; {tokens.prefix} is no SFT shard (tools/prepare_data.py --kind sft)"
            )
        try:
            prompts = np.load(path, mmap_mode="r")
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{path}: cannot be read: {error}") from None
        if prompts.shape != (tokens.num_documents,) or prompts.dtype.kind not in "iu":
            raise UserError(
                f"{path}: expected {tokens.num_documents} integers, found {prompts.dtype} "
                f"of shape {prompts.shape}"
            )
        self._prompts, self._dtype, self._offset = str(path), prompts.dtype, prompts.offset

    def prompt_length(self, sample: int) -> int:
        """The number of prompt tokens of a sample."""
        return int(self._prompt_lengths(sample, sample + 1)[0])

    def longest(self) -> int | None:
        """The length of the longest sample; None where the shard does not say it.

        Raises:
            UserError: where the file that says it is damaged or belongs to another shard.
        """
        path = samples_path(self.tokens.prefix)
        if not path.is_file():
            return None
        try:
            facts = json.loads(path.read_text())
            num_samples, longest = int(facts["num_samples"]), int(facts["longest"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: cannot be read: {error!r}; it may be deleted") from None
        if num_samples != self.tokens.num_documents:
            raise UserError(
                f"{path}: describes {num_samples} samples, but the shard has {self.tokens.num_documents}; it "
                "belongs to another shard, and may be deleted"
            )
        if self.tokens.num_tokens > num_samples * longest:
            raise UserError(
                f"{path}: describes samples of at most {longest} tokens, but the shard's {num_samples} have "
                f"{self.tokens.num_tokens}; it belongs to another shard, and may be deleted"
            )
        return longest

    def all_lengths(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """(first sample, prompt lengths, lengths) of all samples, part by part; int64 [part]."""
        for start in range(0, self.tokens.num_documents, _SAMPLES_AT_ONCE):
            stop = min(start + _SAMPLES_AT_ONCE, self.tokens.num_documents)
            lengths = np.diff(self.tokens.document_starts(np.arange(start, stop + 1)))
            yield start, self._prompt_lengths(start, stop), lengths

    def _prompt_lengths(self, start: int, stop: int) -> np.ndarray:
        itemsize = self._dtype.itemsize
        raw = read_at(self._prompts, (stop - start) * itemsize, self._offset + start * itemsize)
        return np.frombuffer(raw, self._dtype).astype(np.int64)
