"""The shipped tasks, those of reasoning-gym, and names that are none."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT

from mdmscale.evaluation.tasks import generated
from mdmscale.evaluation.tasks.catalogue import list_tasks, load_task, shipped_names
from mdmscale.evaluation.tasks.generated import DEFAULT_SIZE, Generated, generated_names
from mdmscale.system.errors import UserError

# One record of each shipped task, a right response, a wrong one, and one without an answer.
RECORDS: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "gsm8k": (
        {"question": " How many? ", "answer": "12/2 = <<12/2=6>>6\nand $1,006\n#### 1,006"},
        "It is\n#### $1,006.0",
        "#### 1,007",
        "It is 1,006",
    ),
    "openscience": (
        {"input": "Which?", "output": r"Because ... \boxed{\text{C}}"},
        r"So \boxed{C}.",
        r"\boxed{A}",
        "C",
    ),
    "hitab": (
        {"id": "x", "question": "how many?", "answer": [154983.0, "nova scotia"], "table_id": "7"},
        r"\boxed{Nova Scotia} and \boxed{154983.001}",
        r"\boxed{Nova Scotia}",
        "Nova Scotia",
    ),
    "exact": ({"prompt": "1 + 1 =", "response": "2"}, " 2", "3", " "),
}


def write(folder: Path, records: list[dict[str, Any]]) -> Path:
    file = folder / "records.jsonl"
    file.write_text("\n".join(map(json.dumps, records)))
    return file


@pytest.mark.parametrize("name", RECORDS)
def test_a_shipped_task(name: str, tmp_path: Path) -> None:
    record, right, wrong, without = RECORDS[name]
    task = load_task(name)
    (item,) = task.items(write(tmp_path, [record]))
    assert task.judge(item, right).score.correct
    assert not task.judge(item, wrong).score.correct and task.judge(item, wrong).extracted is not None
    missing = task.judge(item, without)
    assert missing.extracted is None and not missing.score.correct and missing.score.points == 0
    for chat in (False, True):
        trained = task.trained(item, chat)
        response = trained["messages"][1]["content"] if chat else trained["response"]
        assert task.judge(item, response).score.correct, "what is trained is right"


def test_every_shipped_task_is_tested_and_has_a_line_about_it() -> None:
    assert shipped_names() == sorted(RECORDS)
    assert all(about for _, about in list_tasks())


def test_gsm8k_trains_solutions_without_marks_of_the_calculator(tmp_path: Path) -> None:
    task = load_task("gsm8k")
    (item,) = task.items(write(tmp_path, [RECORDS["gsm8k"][0]]))
    assert item.expected == "1006"
    assert task.trained(item, chat=False) == {
        "prompt": "Question: How many?\nAnswer:\n",
        "response": "12/2 = 6\nand $1,006\n#### 1,006",
    }
    assert task.trained(item, chat=True)["messages"][0] == {"role": "user", "content": "How many?"}


def test_hitab_with_and_without_its_tables(tmp_path: Path) -> None:
    file = write(tmp_path, [RECORDS["hitab"][0]])
    (alone,) = load_task("hitab").items(file)
    assert alone.id == "x" and alone.prompt.startswith("how many?\n")
    regions = [{"first_row": 0, "last_row": 0, "first_column": 1, "last_column": 2}]
    rows = [["", "men & women", ""], ["total", 5, 6.5]]
    (tmp_path / "7.json").write_text(json.dumps({"title": "T", "texts": rows, "merged_regions": regions}))
    (item,) = load_task("hitab", tmp_path).items(file)
    assert item.prompt == (
        "<table><caption>T</caption><tr><td></td><td colspan=2>men &amp; women</td></tr>"
        "<tr><td>total</td><td>5</td><td>6.5</td></tr></table>\n" + alone.prompt
    )
    (tmp_path / "7.json").unlink()
    with pytest.raises(UserError, match=r"records.jsonl:1: --tables .* has no 7.json"):
        load_task("hitab", tmp_path).items(file)
    with pytest.raises(UserError, match="task gsm8k has no tables"):
        load_task("gsm8k", tmp_path)


def test_the_papers_settings() -> None:
    keys = ("length", "steps", "block_length")
    found = {
        name: [load_task(name).file.decoding[key] for key in keys]
        for name in ("gsm8k", "openscience", "hitab")
    }
    assert found == {"gsm8k": [128, 128, 32], "openscience": [256, 256, 256], "hitab": [512, 256, 16]}
    test, train = load_task("openscience").file.data.test, load_task("openscience").file.data.train
    assert test is not None and train is not None
    assert test.rows == [5000, 6000] and train.rows == [0, 5000]


def test_bad_records_name_their_lines(tmp_path: Path) -> None:
    task = load_task("gsm8k")
    with pytest.raises(UserError, match=r"records.jsonl:1: has no 'question' and no 'answer', .*\['ask'\]"):
        task.items(write(tmp_path, [{"ask": 1}]))
    good = RECORDS["gsm8k"][0]
    with pytest.raises(UserError, match=r"jsonl:2: the expected answer in 'answer' cannot be scored.*'six'"):
        task.items(write(tmp_path, [good, {**good, "answer": "six"}]))
    with pytest.raises(UserError, match="is no text"):
        task.items(write(tmp_path, [{**good, "answer": 6}]))
    with pytest.raises(UserError) as caught:
        task.items(write(tmp_path, [{"ask": 1}] * 13))
    assert len(caught.value.problems) == 11 and caught.value.problems[-1] == "and 3 more like these"
    with pytest.raises(UserError, match="has no records"):
        task.items(write(tmp_path, []))
    with pytest.raises(UserError, match="no such file"):
        task.items(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match="task exact: has no data of its own; give it with --data FILE"):
        load_task("exact").items()


def test_a_limit_reads_no_further(tmp_path: Path) -> None:
    file = write(tmp_path, [RECORDS["exact"][0]] * 3 + [{"bad": 1}])
    assert [item.id for item in load_task("exact").items(file, limit=2)] == [0, 1]


def test_hub_data_that_cannot_be_reached_says_how_to_give_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from mdmscale.models.hub import UnreachableError

    def unreachable(*_: Any) -> None:
        raise UnreachableError("no hub")

    monkeypatch.setattr("mdmscale.evaluation.tasks.task.read_records", unreachable)
    with pytest.raises(UnreachableError, match="give a file of the same records with --data FILE"):
        load_task("gsm8k").items()


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("gsm8", r"there is no task 'gsm8'; did you mean gsm8k\?"),
        ("zzz", "choose one of exact, gsm8k, hitab, openscience; .*--list"),
        ("chain_sum", r"did you mean reasoning-gym:chain_sum\?"),
        ("reasoning-gym:chain_sun", r"did you mean reasoning-gym:chain_sum\?"),
        ("none.yaml", "--task none.yaml: no such file"),
    ],
)
def test_unknown_tasks(name: str, problem: str) -> None:
    pytest.importorskip("reasoning_gym")
    with pytest.raises(UserError, match=problem):
        load_task(name)


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    values = {"prompt": "{q}", "answer": {"field": "a"}, "extract": "last_number", "score": "number"}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values))
    task = load_task(str(tmp_path / "mine.yaml"))
    (item,) = task.items(write(tmp_path, [{"q": "1 + 1", "a": 2}]))
    assert task.name == "mine" and task.judge(item, "that is 2").score.correct
    with pytest.raises(UserError, match="has no `response`, so there is nothing to train"):
        task.trained(item, chat=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*generated_names()} - {"composite"}))
def test_every_generated_task_scores_its_own_answer(name: str) -> None:
    task = load_task(f"reasoning-gym:{name}")
    (item,) = task.items(limit=1)
    if item.expected:
        assert task.judge(item, task.trained(item, chat=False)["response"]).score.correct
    assert task.judge(item, "").score.points == 0


def test_a_generated_question_without_a_stated_answer() -> None:
    pytest.importorskip("reasoning_gym")
    task = load_task("reasoning-gym:graph_color")
    (item,) = task.items(limit=1)
    assert item.expected == "" and task.judge(item, "no").extracted == "no"
    with pytest.raises(UserError, match="item 0: has no 'answer'"):
        task.trained(item, chat=False)


def test_a_generated_task_scores_its_own_answers() -> None:
    pytest.importorskip("reasoning_gym")
    task = load_task("reasoning-gym:chain_sum")
    items = task.items(limit=5)
    assert items == load_task("reasoning-gym:chain_sum").items()[:5] and len(items) == 5
    assert len(task.items()) == DEFAULT_SIZE
    for item in items:
        assert task.judge(item, f"<answer>{item.expected}</answer>").score.correct
        assert task.judge(item, f" {item.expected}\n").score.correct
        assert not task.judge(item, "?").score.correct
        assert task.judge(item, "").extracted is None


def test_training_questions_are_not_those_of_the_test() -> None:
    """The package draws item n of seed s with seed s + n, so near seeds would share questions."""
    pytest.importorskip("reasoning_gym")
    task = load_task("reasoning-gym:chain_sum")
    test = {item.prompt for item in task.items(limit=200)}
    train = [item.prompt for item in task.items(limit=200, split="train")]
    assert len(test & set(train)) < 10, "only by chance"


def test_options_of_a_generated_task(tmp_path: Path) -> None:
    pytest.importorskip("reasoning_gym")
    shipped = yaml.safe_load((ROOT / "mdmscale/evaluation/tasks/reasoning_gym.yaml").read_text())
    shipped["data"]["options"] = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    file = tmp_path / "small_sums.yaml"
    file.write_text(yaml.safe_dump(shipped))
    item = load_task(str(file)).items(limit=1)[0]
    assert item.values["metadata"]["num_terms"] == 2
    shipped["data"]["options"] = {"min_tems": 2}
    file.write_text(yaml.safe_dump(shipped))
    with pytest.raises(UserError, match=r"reasoning-gym:chain_sum: options .*min_tems"):
        load_task(str(file)).items(limit=1)


def test_scorers_that_fail_or_leave_the_range_give_a_wrong_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("reasoning_gym")
    dataset = Generated("chain_sum", {}, 1, "test")
    for points, expected in ((float("nan"), 0.0), (7.0, 1.0), (-1.0, 0.0)):
        monkeypatch.setattr(dataset._dataset, "score_answer", lambda *_, points=points: points)
        assert dataset.score("1", {}) == expected
    monkeypatch.setattr(dataset._dataset, "score_answer", lambda *_: 1 / 0)
    assert dataset.score("1", {}) == 0.0


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "reasoning_gym", None)
    monkeypatch.setitem(__import__("sys").modules, "reasoning_gym.factory", None)
    assert generated_names() == [] and [name for name, _ in list_tasks()] == shipped_names()
    with pytest.raises(UserError, match="reasoning-gym is not installed; install the extra"):
        load_task("reasoning-gym:chain_sum").items()
    assert "mdmscale[tasks]" in generated.INSTALL


def test_the_task_files_are_installed_with_the_package() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert setuptools["package-data"]["mdmscale.evaluation.tasks"] == ["*.yaml"]
