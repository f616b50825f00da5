"""Opening a corpus and reading a sample cost the same at any size. Costs are counted, not timed."""

import os
import pickle
import resource
import sys
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from mdmscale.data import shards, token_source
from mdmscale.data.indexed import CHECKED_SEQUENCES, IndexedShard, bin_path
from mdmscale.data.sft_shard import SFTShard
from mdmscale.data.shards import TokenStream, find_prefixes, fingerprint
from tools.measure_data import (
    BATCH,
    Writer,
    fitted_sampler,
    make_config,
    make_loader,
    open_corpus,
    under_ten_names,
    write_documents,
    write_pairs,
    write_sequences,
    write_shards,
)

LENGTH = 16


def open_loader(prefix: Path, write: Writer, count: int, kind: str) -> Callable[[int], object]:
    """Write and open a corpus of `count` sequences. Returns a function that makes a step's batches."""
    try:
        write(prefix, count, LENGTH)
    except OSError as error:
        pytest.skip(f"no room for a file with so large a hole: {error}")
    config = make_config(prefix, kind, LENGTH)
    loader, sampler = make_loader(config, open_corpus(config)), fitted_sampler(config)
    return lambda step: loader.micro_batches(step, sampler)


def cost(make: Callable[[int], object], steps: int = 4) -> tuple[float, int]:
    """Calls of Python and C functions per sample, and the peak of bytes in use."""
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
    """The cost does not grow with size, though the permutation takes more steps just above a power of 4."""
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
    """10 documents of 100 tokens, which count how often they are accessed."""

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


class CountingHash:
    """Replaces sha256 and counts the bytes that it hashes."""

    num_bytes = 0

    def __init__(self, data: bytes) -> None:
        CountingHash.num_bytes = len(data)

    def update(self, data: bytes) -> None:
        CountingHash.num_bytes += len(data)

    def hexdigest(self) -> str:
        return "0" * 64


@pytest.mark.parametrize("num_shards", [1, 7, 200])
def test_the_bytes_hashed_are_bounded_however_many_the_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_shards: int
) -> None:
    """The fingerprint reads 64 MiB of a corpus; here 64 KiB of a corpus with 1 MiB per shard."""
    monkeypatch.setattr(shards, "_HASHED_BYTES", 2**16)
    monkeypatch.setattr(shards, "_HASHED_BYTES_OF_A_FILE", 64)
    monkeypatch.setattr(shards.hashlib, "sha256", CountingHash)
    write_shards(tmp_path / "many", num_shards * 2**15, LENGTH, num_shards)
    fingerprint(find_prefixes([str(tmp_path / "many")]), {})
    num_files, line = 2 * num_shards, len(".idx 1048576\n")
    assert 2**15 < CountingHash.num_bytes < 2**16 + num_files * (64 + line) + line


def test_the_sequences_checked_are_bounded_however_many_the_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = []

    class Noted(IndexedShard):
        def __init__(self, prefix: Path, num_checked: int = CHECKED_SEQUENCES) -> None:
            checked.append(num_checked)
            super().__init__(prefix, num_checked)

    monkeypatch.setattr(shards, "IndexedShard", Noted)
    write_shards(tmp_path / "many", 10**6, LENGTH, 30)
    open_corpus(make_config(tmp_path / "many", "tokens", LENGTH))
    assert len(checked) == 30 and CHECKED_SEQUENCES / 2 < sum(checked) <= CHECKED_SEQUENCES


def open_files(folder: Path) -> int:
    """The file descriptors and memory maps that this process holds in `folder`."""
    descriptors = [Path("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
    targets = [os.readlink(each) for each in descriptors if each.is_symlink()]
    return sum(str(folder) in each for each in targets + Path("/proc/self/maps").read_text().splitlines())


@pytest.mark.skipif(
    not Path("/proc/self/maps").exists(), reason="looks for open files where Linux lists them"
)
@pytest.mark.parametrize(
    ("kind", "write"),
    [("tokens", partial(write_shards, num_shards=50)), ("sft", under_ten_names(write_pairs))],
)
def test_shards_are_not_kept_open(tmp_path: Path, kind: str, write: Writer) -> None:
    """The limits on descriptors (often 1,024) and maps (65,530) do not limit the number of shards."""
    write(tmp_path / "many", 10**5, LENGTH)
    config = make_config(tmp_path / "many", kind, LENGTH)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 8, hard))
    try:
        source = open_corpus(config)
        for index in range(50):
            source.train_sample(index)
        num_open = open_files(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert num_open == 0


def test_an_sft_set_is_not_looked_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No data per sample is kept or sent to workers."""
    monkeypatch.setattr(SFTShard, "all_lengths", None)
    sizes = []
    for count in (10**3, 10**6):
        write_pairs(tmp_path / str(count), count, LENGTH)
        config = make_config(tmp_path / str(count), "sft", LENGTH)
        without = {"data": config.data.model_copy(update={"held_out": 0.0})}
        sizes.append(len(pickle.dumps(open_corpus(config.model_copy(update=without)))))
    assert sizes[1] < sizes[0] + 100
