"""What an SFT shard has in addition to its tokens: which of them are trained, and the longest length.

`<prefix>.prompts.npy` holds how many tokens of each sample come before the first trained one. Where all that
follow are trained, that says everything. Where not (the earlier turns of a conversation), the number n is
stored as -1 - n, and `<prefix>.trained` has a byte for each token of the shard: 1 if it is trained.

`<prefix>.samples.json` ({"num_samples", "longest", "train_on"}) states that every sample has a response, how
many tokens the longest sample has, and what of conversations is trained. With it, opening a large data set
need not read every length. Without it, all lengths of the shard are read.
"""

import json
import os
from array import array
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np

from mdmscale.config.data import TrainOn
from mdmscale.data.indexed import IndexedShard, IndexedWriter, read_at
from mdmscale.data.shards import prompts_path, trained_path
from mdmscale.system.errors import UserError
from mdmscale.system.files import read_json

_SAMPLES_AT_ONCE = 2**20


def samples_path(prefix: Path) -> Path:
    """The file that says how long the samples of an SFT shard are."""
    return Path(f"{prefix}.samples.json")


def write_samples(
    prefix: Path, prompt_lengths: np.ndarray, longest: int, train_on: TrainOn | None = None
) -> None:
    """Write the prompt lengths [samples] of a shard, each shorter than its sample, and what is known of all.

    A prompt length n is given as -1 - n where the shard marks the sample's trained tokens.
    """
    np.save(prompts_path(prefix), prompt_lengths.astype(np.int32, copy=False))
    facts = {"num_samples": len(prompt_lengths), "longest": longest, "train_on": train_on}
    samples_path(prefix).write_text(json.dumps(facts) + "\n")


class SFTWriter:
    """Writes the samples of a shard. Used with `with`, it leaves no file if the block fails.

    `<prefix>.trained` is written from the first sample on that needs it.
    """

    def __init__(self, prefix: Path, dtype: np.dtype, train_on: TrainOn) -> None:
        self._tokens = IndexedWriter(prefix, dtype)
        self._train_on: TrainOn = train_on
        self._prompts = array("i")
        self._longest = 0
        self._marks: BinaryIO | None = None
        self.num_trained = 0

    @property
    def num_samples(self) -> int:
        return len(self._prompts)

    @property
    def num_tokens(self) -> int:
        return self._tokens.num_tokens

    def add(self, token_ids: np.ndarray, trained: np.ndarray) -> None:
        """Append a sample: its ids, int64 [length], and which of them are trained, bool [length]."""
        prompt_length = int(trained.argmax())
        needs_marks = not trained[prompt_length:].all()
        if needs_marks and self._marks is None:
            self._marks = trained_path(self._tokens.prefix).open("wb")
            # No sample so far has marks, so nothing reads its bytes.
            self._marks.truncate(self.num_tokens)
            self._marks.seek(self.num_tokens)
        if self._marks is not None:
            self._marks.write(trained.astype(np.uint8).tobytes())
        self._tokens.add_document(token_ids)
        self._prompts.append(-1 - prompt_length if needs_marks else prompt_length)
        self._longest = max(self._longest, len(token_ids))
        self.num_trained += int(trained.sum())

    def __enter__(self) -> Self:
        self._tokens.__enter__()
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tokens.__exit__(error_type, error, trace)
        if self._marks is not None:
            self._marks.close()
        if error_type is None:
            write_samples(self._tokens.prefix, np.asarray(self._prompts), self._longest, self._train_on)
        else:
            trained_path(self._tokens.prefix).unlink(missing_ok=True)


def fit_lengths(prompt_lengths: np.ndarray, lengths: np.ndarray, longest: int, too_long: str) -> np.ndarray:
    """The lengths of samples after those beyond `longest` are cut or dropped (length 0): int64 [samples]."""
    if too_long == "truncate":
        return np.where(prompt_lengths < longest, np.minimum(lengths, longest), 0)
    return np.where(lengths <= longest, lengths, 0)


def why_none_fits(too_long: str) -> str:
    """Why no sample is left, and the mend; for messages."""
    if too_long == "truncate":
        return "the prompt of every sample fills the sequence length alone (only responses are cut); raise it"
    return f"all are longer than the sequence length (too_long = {too_long}); raise it"


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
        self._marks = str(trained_path(tokens.prefix))

    def prompt_length(self, sample: int) -> int:
        """The number of a sample's tokens before the first that is trained."""
        return int(_plain(self._stored(sample, sample + 1))[0])

    def trained(self, sample: int, length: int) -> np.ndarray:
        """Which of a sample's first `length` tokens are trained: bool [length].

        Raises:
            UserError: where the marks of the shard's tokens are missing.
        """
        stored = int(self._stored(sample, sample + 1)[0])
        if stored >= 0:
            return np.arange(length) >= stored
        start, _ = self.tokens.document_span(sample)
        try:
            size = os.stat(self._marks).st_size
        except FileNotFoundError:
            raise UserError(
                f"{self._marks}: no such file, but it says which tokens of sample {sample} are trained; copy "
                "it with the shard, or prepare the data again"
            ) from None
        if size != self.tokens.num_tokens:
            raise UserError(
                f"{self._marks}: {size} bytes, but the shard has {self.tokens.num_tokens} tokens; it is cut "
                "short or belongs to another shard"
            )
        return np.frombuffer(read_at(self._marks, length, start), np.uint8) == 1

    def longest(self) -> int | None:
        """The length of the longest sample; None where the shard does not say it.

        Raises:
            UserError: where the file that says it is damaged or belongs to another shard.
        """
        facts = self._facts()
        return None if facts is None else int(facts["longest"])

    def train_on(self) -> str | None:
        """What of conversations is trained (data.train_on); None where the shard does not say it.

        Raises:
            UserError: as `longest`.
        """
        return (self._facts() or {}).get("train_on")

    def _facts(self) -> dict[str, Any] | None:
        path = samples_path(self.tokens.prefix)
        if not path.is_file():
            return None
        try:
            facts = read_json(path)
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
        return facts

    def all_lengths(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """(first sample, prompt lengths, lengths) of all samples, part by part; int64 [part]."""
        for start in range(0, self.tokens.num_documents, _SAMPLES_AT_ONCE):
            stop = min(start + _SAMPLES_AT_ONCE, self.tokens.num_documents)
            lengths = np.diff(self.tokens.document_starts(np.arange(start, stop + 1)))
            yield start, _plain(self._stored(start, stop)), lengths

    def _stored(self, start: int, stop: int) -> np.ndarray:
        itemsize = self._dtype.itemsize
        raw = read_at(self._prompts, (stop - start) * itemsize, self._offset + start * itemsize)
        return np.frombuffer(raw, self._dtype).astype(np.int64)


def _plain(stored: np.ndarray) -> np.ndarray:
    """Prompt lengths as they are stored -> prompt lengths."""
    return np.where(stored < 0, -1 - stored, stored)
