"""A folder gives the files of one split, and each document once."""

import json
import shutil
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from mdmscale.data.preparation.documents import read_documents
from mdmscale.data.preparation.endings import DATA_ENDINGS
from mdmscale.data.preparation.folders import split_of
from mdmscale.data.preparation.inputs import find_inputs
from mdmscale.system.errors import UserError


def rows(*texts: str) -> Dataset:
    return Dataset.from_dict({"text": list(texts)})


def texts_of(folder: Path, split: str = "train") -> list[str]:
    inputs = find_inputs([str(folder)], list(DATA_ENDINGS), split)
    return [document.text for document in read_documents(inputs, "text", split)]


def write(folder: Path, *names: str) -> Path:
    """Files whose only document is their own name."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"text": name}) if name.endswith(".jsonl") else name)
    return folder


def test_a_saved_dataset_is_read_as_its_state_says_and_not_its_caches(tmp_path: Path) -> None:
    texts = [str(number) for number in range(12)]
    rows(*texts).save_to_disk(
        tmp_path / "set", num_shards=11
    )  # names whose order is not that of their numbers
    mapped = Dataset.load_from_disk(tmp_path / "set").map(lambda row: {"text": row["text"] + "!"})
    assert mapped.cache_files and list((tmp_path / "set").glob("cache-*.arrow"))
    assert texts_of(tmp_path / "set") == texts
    assert texts_of(tmp_path) == texts  # also inside a folder
    state = json.loads((tmp_path / "set/state.json").read_text())
    state["_data_files"].reverse()
    (tmp_path / "set/state.json").write_text(json.dumps(state))
    assert texts_of(tmp_path / "set")[0] == "11"


def test_a_dataset_with_splits_gives_the_one_that_is_asked_for(tmp_path: Path, capsys) -> None:
    DatasetDict(train=rows("a", "b"), test=rows("c"), extra=rows("d")).save_to_disk(tmp_path / "set")
    assert texts_of(tmp_path / "set") == ["a", "b"]
    assert "reads 1 of split train; leaves out 1 of extra, 1 of test (see --split)" in capsys.readouterr().out
    assert texts_of(tmp_path / "set", "extra") == ["d"]
    shutil.rmtree(tmp_path / "set/extra")
    assert texts_of(tmp_path, "test") == ["c"]
    with pytest.raises(UserError, match=r"no file of the split 'validation', but of extra, test, train; see"):
        texts_of(tmp_path / "set", "validation")


def test_a_saved_dataset_that_lacks_a_file_is_refused(tmp_path: Path) -> None:
    rows("a", "b").save_to_disk(tmp_path / "set", num_shards=2)
    next((tmp_path / "set").glob("data-00001*")).unlink()
    with pytest.raises(UserError, match=r"data-00001-of-00002\.arrow: no such file, though state\.json"):
        texts_of(tmp_path / "set")
    (tmp_path / "set/state.json").write_text('{"_data_files": [1]}')
    with pytest.raises(UserError, match=r"state\.json: is damaged"):
        texts_of(tmp_path / "set")


def test_files_named_by_split_are_told_apart(tmp_path: Path, capsys) -> None:
    folder = write(tmp_path, "train.jsonl", "data/test.txt", "dev/part.jsonl", "more.jsonl", "README.md")
    assert texts_of(folder) == ["more.jsonl", "train.jsonl"]
    assert "leaves out 1 of test, 1 of validation (see --split)" in capsys.readouterr().out
    assert texts_of(folder, "validation") == ["dev/part.jsonl"]
    capsys.readouterr()
    assert texts_of(write(tmp_path / "plain", "b.jsonl", "a.txt")) == ["a.txt", "b.jsonl"]
    assert "leaves out" not in capsys.readouterr().out
    with pytest.raises(UserError, match="no file of the split 'test', but of no named split"):
        texts_of(tmp_path / "plain", "test")
    with pytest.raises(UserError, match="no file of the split 'train', but of test"):
        texts_of(tmp_path / "data")


def write_and_find(folder: Path, names: list[str], suffixes: list[str]) -> list[str]:
    write(folder, *names)
    return [str(path.relative_to(folder)) for path in find_inputs([str(folder)], suffixes)]


def test_source_code_has_no_splits(tmp_path: Path) -> None:
    names = ["a.py", "test_a.py", "tests/b.py", "dev/c.py"]
    assert write_and_find(tmp_path, names, [".py"]) == ["a.py", "dev/c.py", "test_a.py", "tests/b.py"]


def test_endings_count_in_any_case_and_packed(tmp_path: Path) -> None:
    names = ["a.JSONL", "b.jsonl.GZ", "c.txt.zst", "d.md", "e.jsonl.bak"]
    assert write_and_find(tmp_path, names, [".jsonl", ".TXT"]) == ["a.JSONL", "b.jsonl.GZ", "c.txt.zst"]


def test_what_describes_a_dataset_is_no_data(tmp_path: Path) -> None:
    names = ["dataset_info.json", "state.json", "cache-01ab.arrow", ".cache/a.jsonl", "._a.jsonl", "a.jsonl"]
    write(tmp_path, *names)
    (tmp_path / "state.json").write_text("{}")
    assert texts_of(tmp_path) == ["a.jsonl"]


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("train-00000-of-00001.parquet", "train"),
        ("data/test-00003-of-00041-0123abcd.parquet", "test"),
        ("data/train_sft-00000-of-00003.parquet", "train_sft"),
        ("ultra-test_gen-00000-of-00001.arrow", "test_gen"),
        ("wiki.valid.txt", "validation"),
        ("eval/0.jsonl", "test"),
        ("train2.csv", "train"),
        ("data-00000-of-00001.arrow", None),
        ("latest.jsonl", None),
        ("contest/protest.txt", None),
    ],
)
def test_the_split_that_a_name_says(path: str, split: str | None) -> None:
    assert split_of(Path(path)) == split
