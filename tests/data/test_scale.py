"""A sample of a corpus of any size costs the same; nothing here looks at a clock."""

import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data.measure import (
    BATCH,
    Writer,
    fitted_sampler,
    make_config,
    make_loader,
    open_corpus,
    write_documents,
    write_pairs,
    write_sequences,
)

from mdmscale.data import token_source
from mdmscale.data.indexed import bin_path
from mdmscale.data.shards import TokenStream

LENGTH = 16


def open_loader(prefix: Path, write: Writer, count: int, kind: str) -> Callable[[int], object]:
    """A corpus of `count` sequences, written and opened; what makes a step's batches of it."""
    try:
        write(prefix, count, LENGTH)
    except OSError as error:
        pytest.skip(f"no room for a file with so large a hole: {error}")
    config = make_config(prefix, kind, LENGTH)
    loader, sampler = make_loader(config, open_corpus(config)), fitted_sampler(config)
    return lambda step: loader.micro_batches(step, sampler)


def cost(make: Callable[[int], object], steps: int = 4) -> tuple[float, int]:
    """Calls a sample, of Python's functions and of C's, and the most bytes in use on the way."""
    make(0)  # caches of the epoch and of t are filled once
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        for step in range(1, steps + 1):
            make(step)
    finally:
        sys.setprofile(None)
    tracemalloc.start()
    try:
        make(steps + 1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    return calls / (steps * BATCH), peak


@pytest.mark.parametrize(
    ("kind", "write", "counts"),
    [
        ("tokens", write_sequences, (10**5, 10**9)),
        ("tokens", write_documents, (10**3, 10**6)),
        ("sft", write_pairs, (10**3, 10**6)),
    ],
    ids=["sequences", "documents", "sft"],
)
def test_the_cost_of_a_sample_does_not_grow_with_the_corpus(
    tmp_path: Path, kind: str, write: Writer, counts: tuple[int, int]
) -> None:
    """Not with its size, that is: the walk of the order's permutation is longer just above a power of 4."""
    costs = [cost(open_loader(tmp_path / str(count), write, count, kind)) for count in counts]
    (few_calls, few_bytes), (many_calls, many_bytes) = costs
    assert many_calls < 1.25 * few_calls
    assert many_bytes < 1.25 * few_bytes


def test_the_last_of_a_billion_sequences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prefix = tmp_path / "hollow"
    open_loader(prefix, write_sequences, 10**9, "tokens")
    last = np.arange(1, LENGTH + 1)
    with bin_path(prefix).open("r+b") as file:
        file.seek(-last.size * 2, 2)
        file.write(last.astype("<u2").tobytes())
    config = make_config(prefix, "tokens", LENGTH)
    options = {"held_out": 0.0, "random_length_fraction": 0.0}
    source = open_corpus(config.model_copy(update={"data": config.data.model_copy(update=options)}))
    assert source.num_train == 10**9
    monkeypatch.setattr(token_source, "sequence_of_sample", lambda *_: 10**9 - 1)
    assert source.train_sample(0).token_ids.tolist() == last.tolist()


class HollowShard:
    """10 documents of 100 tokens, and a count of how often it is looked at."""

    num_documents, num_tokens = 10, 1000
    asked = 0

    def document_starts(self, documents: np.ndarray) -> np.ndarray:
        self.asked += 1
        return 100 * documents


def test_documents_are_looked_up_once_in_each_shard_that_has_some() -> None:
    shards = [HollowShard() for _ in range(50)]
    stream = TokenStream(shards, vocab_size=1)  # type: ignore[arg-type]
    documents = np.asarray([0, 9, 10, 25, 499, 500])
    assert stream.document_starts(documents).tolist() == (100 * documents).tolist()
    assert [shard.asked for shard in shards] == [1, 1, 1, *[0] * 46, 1]
