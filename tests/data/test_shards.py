import re
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from mdmscale.data import shards
from mdmscale.data.indexed import IndexedShard, IndexedWriter, bin_path
from mdmscale.data.shards import TokenStream, find_prefixes, fingerprint
from mdmscale.system.errors import UserError


@pytest.fixture
def prefixes(write_shard) -> list[Path]:
    return [write_shard(f"set/s{i}", [[10 * i + j] * (j + 1) for j in range(4)]) for i in range(3)]


def test_paths_name_shards_in_every_way(prefixes):
    folder = prefixes[0].parent
    assert find_prefixes([str(folder)]) == prefixes
    assert find_prefixes([f"{folder}/s[02]*"]) == [prefixes[0], prefixes[2]]
    assert find_prefixes([f"{prefixes[1]}.bin", str(prefixes[0])]) == [prefixes[1], prefixes[0]]


@pytest.mark.parametrize("path", ["nothing", "nothing*", "."])
def test_a_path_without_shards_is_named(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=re.escape(f"data.path = '{path}': no ")):
        find_prefixes([path])


def test_a_shard_named_twice_is_refused(prefixes):
    with pytest.raises(UserError, match="s1 is named twice"):
        find_prefixes([str(prefixes[0].parent), str(prefixes[1])])


def test_the_stream_reads_across_shards(prefixes):
    stream = TokenStream([IndexedShard(prefix) for prefix in prefixes], 1000)
    whole = [10 * i + j for i in range(3) for j in range(4) for _ in range(j + 1)]
    assert stream.num_tokens == len(whole) and stream.num_documents == 12
    for start in range(0, 30, 3):
        for stop in range(start, 31, 5):
            assert stream.read(start, stop).tolist() == whole[start:stop]
    starts = stream.document_starts(np.arange(13)).tolist()
    assert starts == [10 * i + begin for i in range(3) for begin in (0, 1, 3, 6)] + [30]
    spans = [stream.document_span(*stream.owner_of(document)) for document in range(12)]
    assert spans == list(pairwise(starts))


def test_an_id_beyond_the_vocabulary_names_the_shard(prefixes):
    stream = TokenStream([IndexedShard(prefix) for prefix in prefixes], 22)
    with pytest.raises(UserError, match=r"s2\.bin: token id 23 is outside the model's vocabulary of 22"):
        stream.check_token_ids()


def test_a_negative_id_names_the_shard(tmp_path):
    with IndexedWriter(tmp_path / "n", np.dtype("<i4")) as writer:
        writer.add_document(np.asarray([3, -1]))
    with pytest.raises(UserError, match=r"n\.bin: token id -1 is outside"):
        TokenStream([IndexedShard(tmp_path / "n")], 22).check_token_ids()


def test_a_large_stream_is_checked_at_evenly_spaced_places(write_shard, monkeypatch):
    monkeypatch.setattr(shards, "_BLOCK", 10)
    monkeypatch.setattr(shards, "_CHECKED_TOKENS", 30)
    assert list(shards._blocks(1000, 30)) == [(0, 10), (495, 505), (990, 1000)]
    assert list(shards._blocks(25, 30)) == [(0, 10), (10, 20), (20, 25)]
    stream = TokenStream([IndexedShard(write_shard("big", [[1] * 999, [7]]))], 5)
    with pytest.raises(UserError, match="token id 7"):
        stream.check_token_ids()


def test_the_fingerprint_follows_content_and_options_not_the_path(prefixes, tmp_path):
    folder = shutil.copytree(prefixes[0].parent, tmp_path / "elsewhere")
    moved = find_prefixes([str(folder)])
    options = {"sequence_length": 8}
    assert fingerprint(prefixes, options) == fingerprint(moved, options)
    assert fingerprint(prefixes, options) != fingerprint(prefixes, {"sequence_length": 9})
    assert fingerprint(prefixes, options) != fingerprint(prefixes[::-1], options)
    raw = bytearray((folder / "s2.bin").read_bytes())
    raw[4] ^= 1
    (folder / "s2.bin").write_bytes(raw)
    assert fingerprint(prefixes, options) != fingerprint(moved, options)


@pytest.mark.parametrize("place", [0, -1])
def test_in_a_large_corpus_the_ends_of_every_file_are_hashed(prefixes, monkeypatch, place):
    monkeypatch.setattr(shards, "_HASHED_BYTES", 100)
    monkeypatch.setattr(shards, "_HASHED_BYTES_OF_A_FILE", 4)
    fingerprints = {fingerprint(prefixes, {})}
    for prefix in prefixes:
        raw = bytearray(bin_path(prefix).read_bytes())
        raw[place] ^= 1
        bin_path(prefix).write_bytes(raw)
        fingerprints.add(fingerprint(prefixes, {}))
    assert len(fingerprints) == 4


@pytest.mark.parametrize("name", ["x.parquet", "x.jsonl", "x.txt"])
def test_a_file_that_is_no_shard_is_to_be_prepared(tmp_path, name):
    (tmp_path / name).write_text("x")
    with pytest.raises(
        UserError, match=rf"{name}': no token shard; prepare the file first \(python tools/prep"
    ):
        find_prefixes([str(tmp_path / name)])


def test_a_prefix_may_look_like_a_file_of_data(write_shard):
    prefix = write_shard("a.jsonl", [[1, 2]])
    prefix.write_text("x")
    assert find_prefixes([str(prefix)]) == [prefix]


def test_a_mask_token_in_clean_text_names_the_shard(prefixes):
    shards = [IndexedShard(prefix) for prefix in prefixes]
    TokenStream(shards, 1000, mask_token_id=500).check_token_ids()
    stream = TokenStream(shards, 1000, mask_token_id=12)  # of shard 1
    with pytest.raises(
        UserError, match=r"s1\.bin: holds the model's mask token \(id 12\) as 3 of the 10 tokens"
    ):
        stream.check_token_ids()
    stream.read(0, 10)
    with pytest.raises(UserError, match="as 1 of the 1 tokens"):
        stream.read(13, 14)
