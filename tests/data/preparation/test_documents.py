import json
import sysconfig
from pathlib import Path

import pytest

from mdmscale.data.preparation.documents import read_documents
from mdmscale.data.preparation.inputs import HubDataset, find_inputs, input_bytes, stdlib_files
from mdmscale.system.errors import UserError

TEXTS = ["one", "zwei\r\n\tümlaut", "three"]


def write_text(folder: Path) -> Path:
    for number, text in enumerate(TEXTS):
        (folder / f"{number}.txt").write_bytes(text.encode())
    return folder


def write_jsonl(folder: Path) -> Path:
    path = folder / "x.jsonl"
    path.write_text("\n\n".join(json.dumps({"body": text}) for text in TEXTS), encoding="utf-8")
    return path


def write_parquet(folder: Path) -> Path:
    from datasets import Dataset

    Dataset.from_dict({"body": [*TEXTS, None]}).to_parquet(str(folder / "x.parquet"))
    return folder / "x.parquet"


def write_arrow(folder: Path) -> Path:
    from datasets import Dataset

    Dataset.from_dict({"body": TEXTS}).save_to_disk(folder / "set")
    return next((folder / "set").glob("*.arrow"))


@pytest.mark.parametrize("write", [write_text, write_jsonl, write_parquet, write_arrow])
def test_every_format_gives_the_texts_in_order(tmp_path, write):
    inputs = find_inputs([str(write(tmp_path))], [".txt"])
    documents = list(read_documents(inputs, "body", "train"))
    assert [document.text for document in documents] == TEXTS
    assert 0 < sum(document.input_bytes for document in documents) <= input_bytes(inputs) + 1


def test_a_hub_dataset_is_streamed(tmp_path):
    (tmp_path / "set").mkdir()
    write_jsonl(tmp_path / "set")
    inputs = find_inputs([f"hf:{tmp_path / 'set'}"], [])
    assert [document.text for document in read_documents(inputs, "body", "train")] == TEXTS
    assert input_bytes(inputs) is None
    with pytest.raises(UserError, match="no column 'text' among"):
        list(read_documents(inputs, "text", "train"))


def test_a_hub_dataset_may_name_its_configuration():
    assert find_inputs(["hf:org/name:de"], []) == [HubDataset("org/name", "de")]
    assert find_inputs(["hf:org/name"], []) == [HubDataset("org/name", None)]


def test_folders_are_searched_by_suffix_and_globs_match(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("b.py", "a.md", "deep/c.py"):
        (tmp_path / name).write_text("x")
    assert find_inputs([str(tmp_path)], [".py"]) == [tmp_path / "b.py", tmp_path / "deep/c.py"]
    assert find_inputs([f"{tmp_path}/**/*.py", f"{tmp_path}/b.py"], []) == [
        tmp_path / "b.py",
        tmp_path / "deep/c.py",
    ]


@pytest.mark.parametrize(
    ("name", "problem"), [("no.txt", "no such file"), ("*.txt", "no file matches"), (".", r"ends with \.txt")]
)
def test_an_input_that_names_nothing(tmp_path, monkeypatch, name, problem):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=problem):
        find_inputs([name], [".txt"])


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("x.txt", b"ok \xff", r"x\.txt: not UTF-8 at byte 3"),
        ("x.jsonl", b'{"text": "a"}\n{"text": \n', r"x\.jsonl:2: not JSON"),
        ("x.jsonl", b'{"text": "a"}\n\n[1]\n', r"x\.jsonl:3: expected an object"),
        ("x.jsonl", b'{"text": "\xff"}\n', r"x\.jsonl:1: not UTF-8"),
        ("x.jsonl", b'{"body": "a"}\n', r"x\.jsonl:1: no key 'text' among \['body'\]"),
        ("x.jsonl", b'{"text": 3}\n', r"x\.jsonl:1: 'text' is int, not text"),
        ("x.parquet", b"PAR", r"x\.parquet: not a readable parquet file"),
        ("x.arrow", b"ARROW", r"x\.arrow: neither an Arrow stream nor an Arrow file"),
    ],
)
def test_unreadable_input_is_named(tmp_path, name, content, problem):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=problem):
        list(read_documents([path], "text", "train"))


@pytest.mark.parametrize("write", [write_parquet, write_arrow])
def test_a_missing_column_names_those_there_are(tmp_path, write):
    with pytest.raises(UserError, match=r"no column 'text' among \['body'\]"):
        list(read_documents([write(tmp_path)], "text", "train"))


def test_the_standard_library_is_about_5_mb_of_source():
    files = stdlib_files()
    assert files == stdlib_files() == sorted(files)
    assert 4.5e6 < input_bytes(list(files)) < 6e6
    root = sysconfig.get_path("stdlib")
    assert not any({"test", "tests", "site-packages"} & set(file.relative_to(root).parts) for file in files)
