"""Task files: what is refused, with all problems at once."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from mdmscale.evaluation.tasks.task_file import Named, read_task_file
from mdmscale.system.errors import UserError

GOOD: dict[str, Any] = {
    "prompt": "{question}",
    "response": "{answer}",
    "answer": {"field": "answer"},
    "extract": [{"tag": "answer"}, "whole"],
    "score": {"set": {"tolerance": 0.01}},
    "decoding": {"length": 16, "steps": 8},
}


def write(folder: Path, values: dict[str, Any]) -> Path:
    file = folder / "mine.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


def test_a_good_file(tmp_path: Path) -> None:
    task = read_task_file(write(tmp_path, GOOD))
    assert task.extract == [Named("tag", "answer"), Named("whole")]
    assert task.score == Named("set", 0.01) and task.chat == "auto"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"prompts": "x"}, r"prompts: unknown key; did you mean prompt\?"),
        ({"data": {"hubs": "x"}}, r"data.hubs: unknown key; did you mean hub\?"),
        ({"answer": {"field": "a", "extrct": "x"}}, r"answer.extrct: unknown key; did you mean extract\?"),
        ({"answer": None}, "answer = None: expected keys under it"),
        ({"chat": "yes"}, "chat = 'yes': input should be 'auto', 'always' or 'never'"),
        ({"extract": "boxd"}, r"extract: there is no extractor 'boxd'; did you mean boxed\?"),
        ({"extract": "number_after"}, r"number_after needs a marker: write \{number_after: ...\}"),
        ({"extract": {"boxed": 1}}, "boxed takes no argument, but has 1"),
        ({"extract": {"boxed": 1, "whole": 2}}, r"write a name, or \{name: argument\}"),
        ({"score": "nmber"}, r"score: there is no score 'nmber'; did you mean number\?"),
        ({"score": {"set": {"tol": 1}}}, r"set: write \{set: \{tolerance: ...\}\}"),
        ({"score": {"set": {"tolerance": "a"}}}, "tolerance = 'a': must be a number"),
        ({"score": "reasoning_gym"}, "reasoning_gym goes with data.reasoning_gym"),
        ({"response": "{answer|striped}"}, r"response: there is no filter 'striped'; did you mean strip\?"),
        ({"decoding": {"lenght": 4}}, r"decoding: there is no option 'lenght'; did you mean length\?"),
        ({"decoding": {"length": 4, "steps": 8}}, "decoding: steps = 8: exceeds length = 4"),
        ({"decoding": {"seed": 4}}, "there is no option 'seed'"),
        ({"data": {"hub": "a/b"}}, "data.hub is set, but data.test does not say"),
        ({"data": {"hub": "a/b", "file": "x"}}, "data has hub and file; give one of them"),
        ({"data": {"train": {"split": "train", "rows": [5, 1]}}}, r"rows = \[5, 1\]: write \[first, end\]"),
    ],
)
def test_what_is_refused(tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=problem) as caught:
        read_task_file(write(tmp_path, {**GOOD, **changes}))
    assert all(str(tmp_path / "mine.yaml") in line for line in caught.value.problems)


def test_all_problems_at_once(tmp_path: Path) -> None:
    values = {**GOOD, "prompts": "x", "extract": "boxd", "score": "nmber"}
    del values["answer"]
    with pytest.raises(UserError) as caught:
        read_task_file(write(tmp_path, values))
    assert len(caught.value.problems) == 4
    assert any("answer: required, but not given" in line for line in caught.value.problems)


def test_files_that_are_no_task(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    for text, problem in (("- a", "expected keys"), ("a: [", "line 1"), ("a: 1\na: 2", "duplicate key 'a'")):
        file.write_text(text)
        with pytest.raises(UserError, match=problem):
            read_task_file(file)
    with pytest.raises(UserError, match="cannot be read"):
        read_task_file(tmp_path / "none.yaml")
