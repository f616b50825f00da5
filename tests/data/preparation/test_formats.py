"""Every format gives the same records to text and to SFT data; every fault names the file and the place."""

import bz2
import gzip
import json
import lzma
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from datasets import Dataset

from mdmscale.data.preparation import jsonl, reading
from mdmscale.data.preparation.documents import read_documents
from mdmscale.data.preparation.formats import read_records
from mdmscale.system.errors import UserError

ROWS = [
    {"text": "one, two", "label": "a"},
    {"text": 'dr"ei\nvier', "label": "b"},
    {"text": "ü\t6", "label": "c"},
]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
CSV = 'text,label\n"one, two",a\n"dr""ei\nvier",b\nü\t6,c\n'


def packed(suffix: str, raw: bytes) -> bytes:
    match suffix:
        case ".gz":
            return gzip.compress(raw)
        case ".bz2":
            return bz2.compress(raw)
        case ".xz":
            return lzma.compress(raw)
        case ".zst":
            sink = pyarrow.BufferOutputStream()
            with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
                stream.write(raw)
            return sink.getvalue().to_pybytes()
    return raw


FILES = {
    "a.jsonl": LINES,
    "a.JSONL": LINES,
    "a.jsonlines": LINES.replace("\n", "\r\n"),
    "a.ndjson": "\ufeff" + LINES + "\n\n",
    "lines.json": LINES,
    "array.json": json.dumps(ROWS),
    "pretty.JSON": "\ufeff" + json.dumps(ROWS, indent=2, ensure_ascii=False),
    "joined.json": "".join(map(json.dumps, ROWS)),
    "a.csv": CSV,
    "bom.Csv": "\ufeff" + CSV.replace("a\n", "a\n\n"),
    "a.tsv": 'text\tlabel\none, two\ta\n"dr""ei\nvier"\tb\n"ü\t6"\tc\n',
    "a.jsonl.gz": LINES,
    "a.ndjson.bz2": LINES,
    "a.json.xz": json.dumps(ROWS),
    "a.csv.zst": CSV,
    "a.JSONL.ZST": LINES,
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_its_rows(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(packed(path.suffix.lower(), FILES[name].encode()))
    records = list(read_records(path, "train"))
    assert [record.values for record in records] == ROWS
    assert 0 < sum(record.num_bytes for record in records) <= path.stat().st_size
    documents = read_documents([path], "text", "train")
    assert [document.text for document in documents] == [row["text"] for row in ROWS]


@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("a.ndjson", [":1", ":2", ":3"]),
        ("array.json", [":1, item 0", ":1, item 1", ":1, item 2"]),
        ("pretty.JSON", [":2, item 0", ":6, item 1", ":10, item 2"]),
        ("a.csv", [":2", ":3", ":5"]),
    ],
)
def test_a_row_says_where_it_is(tmp_path: Path, name: str, places: list[str]) -> None:
    (tmp_path / name).write_text(FILES[name])
    assert [record.where for record in read_records(tmp_path / name, "train")] == [
        f"{tmp_path / name}{place}" for place in places
    ]


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_a_packed_text_is_one_document(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(packed(suffix, "\ufeffzwei\r\nZeilen".encode()))
    assert [document.text for document in read_documents([path], "text", "train")] == ["zwei\r\nZeilen"]


def test_objects_are_found_wherever_a_piece_of_the_file_ends(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(jsonl, "_CHUNK", 1)
    for text in (json.dumps(ROWS, ensure_ascii=False), json.dumps(ROWS, indent=1), LINES):
        (tmp_path / "a.json").write_text(text)
        assert [record.values for record in read_records(tmp_path / "a.json", "train")] == ROWS


def write_parquet(path: Path) -> Path:
    Dataset.from_list(ROWS).to_parquet(path)
    return path


def write_arrow(path: Path) -> Path:
    Dataset.from_list(ROWS).save_to_disk(path.parent / "set")
    return next((path.parent / "set").glob("*.arrow")).rename(path)


def write_arrow_file(path: Path) -> Path:
    table = pyarrow.Table.from_pylist(ROWS)
    with pyarrow.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)
    return path


TABLES = [("a.parquet", write_parquet), ("a.ARROW", write_arrow), ("b.arrow", write_arrow_file)]


@pytest.mark.parametrize(("name", "write"), TABLES)
def test_a_table_is_its_rows_and_says_where(tmp_path: Path, name: str, write: Callable[[Path], Path]) -> None:
    path = write(tmp_path / name)
    records = list(read_records(path, "train"))
    assert [record.values for record in records] == ROWS
    assert records[2].where == f"{path}, row 2"


@pytest.mark.parametrize(("name", "write"), TABLES)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.99])
def test_a_table_cut_short_is_refused(
    tmp_path: Path, name: str, write: Callable[[Path], Path], share: float
) -> None:
    path = write(tmp_path / name)
    raw = path.read_bytes()
    path.write_bytes(raw[: int(share * len(raw))])
    with pytest.raises(UserError, match=r"empty|cut short|readable|neither") as caught:
        list(read_records(path, "train"))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("cut", [8, 200])
def test_a_stream_cut_between_its_batches_is_refused(tmp_path: Path, cut: int) -> None:
    """Arrow itself reads the batches that are left."""
    path = tmp_path / "a.arrow"
    table = pyarrow.Table.from_pylist(ROWS * 4)
    with pyarrow.ipc.new_stream(path, table.schema) as writer:
        for batch in table.to_batches(max_chunksize=3):
            writer.write_batch(batch)
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(UserError, match=r"a\.arrow: .*cut short"):
        list(read_records(path, "train"))


def test_wrong_offsets_in_an_arrow_file_are_refused(tmp_path: Path) -> None:
    """They would make Arrow read other memory."""
    path = write_arrow_file(tmp_path / "a.arrow")
    raw = path.read_bytes()
    offsets = b"".join(n.to_bytes(4, "little") for n in (0, 8, 18, 22))
    assert raw.count(offsets) == 1
    path.write_bytes(raw.replace(offsets, offsets[:4] + (2**30).to_bytes(4, "little") + offsets[8:]))
    with pytest.raises(UserError, match=r"a\.arrow: damaged"):
        list(read_records(path, "train"))


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_packed_file_that_is_damaged_is_refused(tmp_path: Path, name: str, suffix: str) -> None:
    path = tmp_path / f"{name}{suffix}"
    whole = packed(suffix, LINES.encode())
    for raw, problem in [
        (b"", "is empty"),
        (whole[:-9], "damaged or cut short"),
        (b"text", "damaged or cut"),
    ]:
        path.write_bytes(raw)
        with pytest.raises(UserError, match=problem) as caught:
            list(read_documents([path], "text", "train"))
        assert str(path) in str(caught.value)


DEEP = "[" * 100_000 + "]" * 100_000
FAULTS: list[tuple[str, bytes, str]] = [
    ("a.jsonl", b'{"text": "a"}\n{"text": ' + DEEP.encode() + b"}\n", r"a\.jsonl:2: nested too deeply"),
    ("a.json", b'{"text": "a"}\n{"text": ' + DEEP.encode() + b"}\n", r"a\.json:2: nested too deeply"),
    ("a.jsonl", b'{"n": ' + b"9" * 5000 + b"}", r"a\.jsonl:1: has an integer of more than 4,300 digits"),
    ("a.json", b'[\n{"n": ' + b"9" * 5000 + b"}]", r"a\.json:2: has an integer of more than 4,300 digits"),
    ("a.jsonl", b'{"text": "a", "text": "b"}', r"a\.jsonl:1: an object has the key 'text' twice"),
    ("a.jsonl", b'\n{"text": "\xed\xa0\x80"}', r"a\.jsonl:2: not UTF-8"),  # a surrogate, not escaped
    ("a.jsonl", '{"text": "a"}'.encode("utf-16"), r"a\.jsonl:1: not UTF-8"),
    ("a.jsonl", b'{"text": "a"} {"text": "b"}', r"a\.jsonl:1: not JSON: Extra data at column 15"),
    ("a.json", b'["a"]', r"a\.json:1: expected an object .*, found '\"'"),
    ("a.json", b'[{"text": "a"}\n{"text": "b"}]', r"a\.json:2: not JSON: expected ',' or '\]'"),
    ("a.json", b'[{"text": "a"}', r"a\.json:1: not JSON: expected ',' or '\]'"),
    ("a.json", b'[{"text": "a"}]\n[]', r"a\.json:2: not JSON: there is more"),
    ("a.json", b'[{"text": "a"},\n{"text": "b', r"a\.json:2: not JSON: Unterminated string"),
    ("a.json", b'{"text": "\xff"}', r"a\.json: not UTF-8"),
    ("a.csv", b"text,label\na,b\nc\n", r"a\.csv:3: 1 fields, but the first line names 2 columns"),
    ("a.csv", b'text,label\na,b\n"c,d\n', r"a\.csv:3: unexpected end of data"),
    ("a.csv", b"text,text\na,b\n", r"a\.csv:1: .* has a name twice"),
    ("a.csv", b"text\n\xff\n", r"a\.csv:2: not UTF-8"),
    ("a.csv", b"body\na\n", r"a\.csv: no column 'text' among \['body'\]"),
    ("a.tsv", b"body\tlabel\na\tb\n", r"a\.tsv: no column 'text' among \['body', 'label'\]"),
    ("a.parquet.gz", b"x", r"a\.parquet\.gz: of compressed files .* unpack it"),
    ("a.bin", b"weights\0\0", r"a\.bin: not text, as it has a zero byte at 7"),
    ("a.txt", "text".encode("utf-16-le"), r"a\.txt: not text"),
]


@pytest.mark.parametrize(("name", "content", "problem"), FAULTS)
def test_a_fault_names_the_file_and_the_line(tmp_path: Path, name: str, content: bytes, problem: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=problem) as caught:
        list(read_documents([path], "text", "train"))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_a_line_without_an_end_is_refused_before_it_is_in_memory(tmp_path: Path, name: str) -> None:
    with (tmp_path / name).open("wb") as file:
        file.truncate(2**33)
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=rf"{name}:1: the line is longer than 64 MiB"):
            list(read_records(tmp_path / name, "train"))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3 * reading.LONGEST_LINE


def test_an_object_without_an_end_is_refused_before_it_is_in_memory(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(jsonl, "LONGEST_LINE", 2**16)
    monkeypatch.setattr(jsonl, "_CHUNK", 2**10)
    path = tmp_path / "a.json"
    path.write_text('[{"text": "a"},\n{"text": "' + "b" * 2**22)
    records = read_records(path, "train")
    assert next(records).values == {"text": "a"}
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=r"a\.json:2: no object ends within 0 MiB"):
            list(records)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**20


def test_a_long_document_of_csv_is_read(tmp_path: Path) -> None:
    """Python's csv module refuses fields of more than 128 KiB unless it is told otherwise."""
    (tmp_path / "a.csv").write_text(f"text\n{'a b ' * 2**17}\n")
    (document,) = read_documents([tmp_path / "a.csv"], "text", "train")
    assert len(document.text) == 2**19


def test_nulls_of_a_table_are_left_out(tmp_path: Path) -> None:
    """Arrow gives every message every key of any message, and every row every column."""
    rows = [
        {"messages": [{"role": "user", "content": "a", "name": "x"}, {"role": "assistant", "content": "b"}]},
        {"prompt": "p", "response": "r"},
    ]
    Dataset.from_list(
        [{**dict.fromkeys(("prompt", "response", "messages")), **row} for row in rows]
    ).to_parquet(tmp_path / "a.parquet")
    assert [record.values for record in read_records(tmp_path / "a.parquet", "train")] == rows
