"""Wrong files and folders are named, with what to give instead, before a run starts."""

import os
from pathlib import Path
from typing import Any

import pytest

from mdmscale.config.run import RunConfig
from mdmscale.system.errors import UserError
from mdmscale.training.paths import check_paths

Values = dict[str, Any]


def write(path: Path, text: str = "{}") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def places(tmp_path: Path) -> Path:
    """A folder with runs of every state: finished, unfinished, and with a checkpoint only."""
    checkpoint = tmp_path / "runs" / "done" / "checkpoints" / "step-00000020"
    for name in ("runs/done/config.yaml", "runs/done/hf/config.json", "runs/done/hf/tokenizer.json"):
        write(tmp_path / name)
    for folder in (checkpoint, tmp_path / "runs" / "half" / "checkpoints" / "step-00000010"):
        write(folder / "state.json")
        write(folder / "model" / "tokenizer.json")
    write(tmp_path / "runs" / "half" / "config.yaml")
    write(tmp_path / "plain" / "readme.txt")
    write(tmp_path / "shards" / "part.idx")
    write(tmp_path / "table.parquet")
    return tmp_path


def problems(values: Values, writes: bool = True) -> list[str]:
    try:
        check_paths(RunConfig.model_validate(values), writes)
    except UserError as error:
        return error.problems
    return []


@pytest.mark.parametrize(
    ("section", "key", "value", "problem"),
    [
        (
            "model",
            "path",
            "runs/done",
            "is a run folder; give the model that it has exported, {}/runs/done/hf",
        ),
        ("model", "path", "runs/half", "is a run folder without an exported model"),
        (
            "model",
            "path",
            "runs/half/checkpoints/step-00000010",
            "is a checkpoint; make a model folder of it",
        ),
        ("model", "path", "plain", "a folder without config.json; give a Hugging Face model folder"),
        ("model", "path", "runs/nothing", "no such folder"),
        ("model", "path", "table.parquet", "is a file; give the folder that holds it"),
        ("model", "tokenizer", "runs/done", "is a folder of a run; give {}/runs/done/hf"),
        ("model", "tokenizer", "runs/half", "give {}/runs/half/checkpoints/step-00000010/model"),
        (
            "model",
            "tokenizer",
            "runs/half/checkpoints/step-00000010",
            "give {}/runs/half/checkpoints/step-00000010/model",
        ),
        ("model", "tokenizer", "plain", "no tokenizer in this folder"),
        (
            "checkpoint",
            "resume",
            "runs/done",
            "holds checkpoints and is none; give one of them, such as {}/runs/",
        ),
        ("checkpoint", "resume", "runs/half/checkpoints", "such as {}/runs/half/checkpoints/step-00000010"),
        (
            "checkpoint",
            "resume",
            "runs/done/hf",
            "is a model folder; to start from its weights, give it as mo",
        ),
        ("checkpoint", "resume", "runs/nothing", "no such folder; give a checkpoint, or auto"),
        ("checkpoint", "resume", "plain", "is no checkpoint; checkpoints are in <run folder>/checkpoints"),
        ("checkpoint", "resume", "table.parquet", "is no checkpoint"),
        (
            "data",
            "path",
            "table.parquet",
            "no token shard; prepare the file first",
        ),
        ("data", "path", "plain", "no .idx in this folder"),
        ("data", "path", "nothing", "no such shard, file or folder"),
        ("run", "output_dir", "table.parquet", "{}/table.parquet is not a folder"),
        ("run", "output_dir", "table.parquet/more", "{}/table.parquet is not a folder"),
    ],
)
def test_a_wrong_path_is_named_with_what_to_give(
    tiny: Values, places: Path, section: str, key: str, value: str, problem: str
) -> None:
    tiny.setdefault(section, {})[key] = str(places / value)
    (found,) = problems(tiny)
    assert found.startswith(f"{section}.{key} = {str(places / value)!r}: ")
    assert problem.format(places) in found


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("model", "path", "runs/done/hf"),
        ("model", "tokenizer", "runs/done/hf"),
        ("model", "path", "owner/name"),
        ("checkpoint", "resume", "runs/done/checkpoints/step-00000020"),
        ("checkpoint", "resume", "none"),
        ("data", "path", "shards"),
        ("run", "output_dir", "new/and/deep"),
    ],
)
def test_a_right_path_is_left_alone(tiny: Values, places: Path, section: str, key: str, value: str) -> None:
    is_here = (places / value).exists() or section == "run"
    tiny.setdefault(section, {})[key] = str(places / value) if is_here else value
    before = sorted(places.rglob("*"))
    assert problems(tiny) == []
    assert sorted(places.rglob("*")) == before, "the check leaves nothing behind"


def test_a_run_with_checkpoints_no_longer_needs_the_one_that_it_began_with(
    tiny: Values, places: Path
) -> None:
    tiny["checkpoint"] = {"resume": str(places / "gone" / "step-00000001")}
    assert "no such folder" in problems(tiny)[0]
    tiny["run"] |= {"output_dir": str(places / "runs"), "name": "half"}
    assert problems(tiny) == []


def test_jsonl_files_and_globs(tiny: Values, places: Path) -> None:
    write(places / "a.jsonl")
    tiny["data"] |= {"kind": "sft", "path": [str(places / "a.jsonl"), str(places / "*.jsonl")]}
    assert problems(tiny) == []
    tiny["data"]["path"] = [str(places / "b.jsonl"), str(places / "c*.jsonl")]
    assert [problem.rpartition(": ")[2] for problem in problems(tiny)] == ["no such file", "no such file"]


def test_all_problems_are_told_together(tiny: Values, places: Path) -> None:
    tiny["data"]["path"] = [str(places / "one"), str(places / "two")]
    tiny["model"]["tokenizer"] = "./x"
    tiny["checkpoint"] = {"resume": str(places / "plain")}
    tiny["run"]["output_dir"] = str(places / "table.parquet")
    names = [problem.partition(" = ")[0] for problem in problems(tiny)]
    expected = ["data.path", "data.path", "model.tokenizer", "checkpoint.resume", "run.output_dir"]
    assert names == expected
    assert [problem.partition(" = ")[0] for problem in problems(tiny, writes=False)] == expected[:-1]


@pytest.mark.parametrize("output_dir", ["/proc/runs", "/dev/null"])
def test_a_place_where_nothing_can_be_written(tiny: Values, output_dir: str) -> None:
    tiny["run"]["output_dir"] = output_dir
    (problem,) = problems(tiny)
    assert problem.startswith(f"run.output_dir = {output_dir!r}: ")


@pytest.mark.skipif(os.getuid() == 0, reason="the superuser may write everywhere")
def test_a_folder_of_someone_else(tiny: Values, places: Path) -> None:
    (places / "closed").mkdir(mode=0o500)
    tiny["run"]["output_dir"] = str(places / "closed" / "runs")
    (problem,) = problems(tiny)
    assert "Permission denied" in problem
