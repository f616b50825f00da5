import struct
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from mdmscale.data.indexed import IndexedShard, IndexedWriter, token_dtype
from mdmscale.system.errors import UserError

DOCUMENTS = [[1, 2, 3], [4], [5, 6]]


def test_the_files_have_megatrons_layout(write_shard):
    prefix = write_shard("a", DOCUMENTS)
    expected = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 8, 3, 4)
    expected += struct.pack("<3i", 3, 1, 2) + struct.pack("<3q", 0, 6, 8) + struct.pack("<4q", 0, 1, 2, 3)
    assert Path(f"{prefix}.idx").read_bytes() == expected
    assert Path(f"{prefix}.bin").read_bytes() == struct.pack("<6H", 1, 2, 3, 4, 5, 6)


@pytest.mark.parametrize(
    ("vocab_size", "dtype"), [(2048, "<u2"), (65499, "<u2"), (65500, "<i4"), (126464, "<i4")]
)
def test_dtype_follows_the_vocabulary(vocab_size, dtype):
    assert token_dtype(vocab_size) == np.dtype(dtype)


def test_reads_back_what_was_written(write_shard):
    shard = IndexedShard(write_shard("a.v1", DOCUMENTS))
    assert (shard.num_documents, shard.num_tokens) == (3, 6)
    assert shard.document_starts(np.arange(4)).tolist() == [0, 3, 4, 6]
    assert shard.tokens(2, 5).tolist() == [3, 4, 5]
    assert shard.tokens(2, 5).dtype == np.int64


def write_by_hand(prefix: Path, code: int, dtype: str, lengths: list[int], documents: list[int]) -> None:
    """A shard as another program writes it."""
    ids = np.arange(sum(lengths), dtype=dtype)
    pointers = np.cumsum([0, *lengths[:-1]], dtype="<i8") * ids.itemsize
    Path(f"{prefix}.bin").write_bytes(ids.tobytes())
    Path(f"{prefix}.idx").write_bytes(
        b"MMIDIDX\x00\x00"
        + struct.pack("<QBQQ", 1, code, len(lengths), len(documents))
        + np.asarray(lengths, dtype="<i4").tobytes()
        + pointers.tobytes()
        + np.asarray(documents, dtype="<i8").tobytes()
    )


@pytest.mark.parametrize(
    ("code", "dtype"), [(1, "u1"), (2, "i1"), (3, "<i2"), (4, "<i4"), (5, "<i8"), (8, "<u2")]
)
def test_documents_of_several_sequences(tmp_path, code, dtype):
    write_by_hand(tmp_path / "m", code, dtype, lengths=[3, 1, 2, 4], documents=[0, 2, 4])
    shard = IndexedShard(tmp_path / "m")
    assert shard.num_documents == 2
    assert shard.document_starts(np.arange(3)).tolist() == [0, 4, 10]
    assert [shard.document_span(document) for document in range(2)] == [(0, 4), (4, 10)]
    assert shard.tokens(0, 10).tolist() == list(range(10))


def test_spans_are_those_of_the_starts_where_documents_are_empty(tmp_path):
    write_by_hand(tmp_path / "m", 8, "<u2", lengths=[3, 2], documents=[0, 0, 1, 1, 2, 2, 2])
    shard = IndexedShard(tmp_path / "m")
    starts = shard.document_starts(np.arange(7)).tolist()
    assert starts == [0, 0, 3, 3, 5, 5, 5]
    spans = [shard.document_span(document) for document in range(6)]
    assert spans == list(pairwise(starts))


def test_float_shards_are_refused(tmp_path):
    write_by_hand(tmp_path / "m", 7, "<f4", lengths=[2], documents=[0, 1])
    with pytest.raises(UserError, match=r"m\.idx: dtype code 7"):
        IndexedShard(tmp_path / "m")


def test_sequences_out_of_place_are_refused(tmp_path):
    write_by_hand(tmp_path / "m", 8, "<u2", lengths=[3, 1, 2], documents=[0, 3])
    idx = tmp_path / "m.idx"
    raw = bytearray(idx.read_bytes())
    raw[34 + 12 + 8 : 34 + 12 + 16] = struct.pack("<q", 4)
    idx.write_bytes(raw)
    with pytest.raises(UserError, match="do not lie one after the other"):
        IndexedShard(tmp_path / "m")


@pytest.mark.parametrize(
    ("suffix", "damage", "message"),
    [
        (".idx", lambda raw: b"", "cut short or empty"),
        (".idx", lambda raw: raw[:-1], "cut short"),
        (".idx", lambda raw: b"X" + raw[1:], "not an index in Megatron's format"),
        (".idx", lambda raw: raw[:9] + struct.pack("<Q", 2) + raw[17:], "version 2"),
        (".bin", lambda raw: b"", "holds no tokens"),
        (".bin", lambda raw: raw[:-2], "announces 12"),
        (".bin", lambda raw: raw + b"\x00\x00", "announces 12"),
    ],
)
def test_a_damaged_file_is_named(write_shard, suffix, damage, message):
    prefix = write_shard("a", DOCUMENTS)
    path = Path(f"{prefix}{suffix}")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=message) as caught:
        IndexedShard(prefix)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("suffix", [".idx", ".bin"])
def test_a_missing_file_is_named(write_shard, suffix):
    prefix = write_shard("a", DOCUMENTS)
    Path(f"{prefix}{suffix}").unlink()
    with pytest.raises(UserError, match=rf"a\{suffix}: no such file"):
        IndexedShard(prefix)


NUM_DOCUMENTS, NUM_SEQUENCES = 12, 12
PLACES = {  # where entry i of each array of the index begins, and its type
    "length": lambda i: (34 + 4 * i, "<i"),
    "pointer": lambda i: (34 + 4 * NUM_SEQUENCES + 8 * i, "<q"),
    "document": lambda i: (34 + 12 * NUM_SEQUENCES + 8 * i, "<q"),
}
WRONG = {
    "length": [-1, 2, 4, 2**31 - 1],
    "pointer": [-6, 1, 6 * 5 + 1, 6 * 11, 2**40],
    "document": [-1, 13, 2**40],
}


@pytest.mark.parametrize("entry", range(NUM_DOCUMENTS))
@pytest.mark.parametrize(("array", "value"), [(array, value) for array in WRONG for value in WRONG[array]])
def test_no_document_is_read_through_a_damaged_entry(write_shard, array, value, entry):
    """Opening checks two places only here, as of a large shard; then each read checks what it uses."""
    shard_documents = [[3 * number, 3 * number + 1, 3 * number + 2] for number in range(NUM_DOCUMENTS)]
    prefix = write_shard("a", shard_documents)
    offset, kind = PLACES[array](entry)
    path = Path(f"{prefix}.idx")
    raw = bytearray(path.read_bytes())
    truth = struct.unpack_from(kind, raw, offset)[0]
    struct.pack_into(kind, raw, offset, value)
    path.write_bytes(raw)
    refusals = 0
    try:
        shard = IndexedShard(prefix, num_checked=2)
    except UserError:
        return
    for document in range(NUM_DOCUMENTS):
        try:
            span = shard.document_span(document)
        except UserError as error:
            assert str(path) in str(error)
            refusals += 1
        else:
            assert shard.tokens(*span).tolist() == shard_documents[document]
    assert (refusals > 0) == (value != truth)
    if value != truth:
        with pytest.raises(UserError, match=r"a\.idx: damaged: its entries for document \d+ cannot be right"):
            shard.document_starts(np.arange(NUM_DOCUMENTS + 1))


@pytest.mark.parametrize(
    "documents", [[0, 2, 1, 3], [0, 3, 3, 2, 3], [0, -1, 3], [0, 4, 3], [1, 2, 3], [0, 2]]
)
def test_documents_out_of_order_are_refused(tmp_path, documents):
    write_by_hand(tmp_path / "m", 8, "<u2", lengths=[3, 1, 2], documents=documents)
    with pytest.raises(UserError, match=r"m\.idx: .*(not in order|does not span its sequences)"):
        IndexedShard(tmp_path / "m")


def test_a_part_of_a_token_is_refused(write_shard):
    prefix = write_shard("a", DOCUMENTS)
    path = Path(f"{prefix}.bin")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"a\.bin: 11 bytes are no whole number of tokens of 2 bytes"):
        IndexedShard(prefix)


@pytest.mark.parametrize(("start", "stop"), [(3, 2), (-1, 2), (0, 7), (7, 8)])
def test_tokens_that_a_shard_does_not_have(write_shard, start, stop):
    with pytest.raises(UserError, match=rf"a\.bin: has 6 tokens, and no tokens {start} to {stop}"):
        IndexedShard(write_shard("a", DOCUMENTS)).tokens(start, stop)


def test_an_id_that_the_dtype_does_not_hold_is_never_written(tmp_path):
    with pytest.raises(AssertionError), IndexedWriter(tmp_path / "a", np.dtype("<u2")) as writer:
        writer.add_document(np.asarray([70_000]))


def test_a_failed_writer_leaves_no_file(tmp_path):
    with pytest.raises(RuntimeError), IndexedWriter(tmp_path / "a", np.dtype("<u2")) as writer:
        writer.add_document(np.asarray([1]))
        raise RuntimeError
    assert not list(tmp_path.iterdir())
