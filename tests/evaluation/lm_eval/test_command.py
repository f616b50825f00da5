"""`evaluate lm-eval` and `python -m mdmscale.evaluation.lm_eval`, on tasks of local files."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")
from conftest import ROOT, run_ranks
from lm_eval.tasks import TaskManager

from mdmscale.evaluate_command import main
from mdmscale.evaluation.likelihood.plan import LikelihoodOptions
from mdmscale.evaluation.likelihood.scoring import Scored, log_likelihoods
from mdmscale.evaluation.lm_eval import harness
from mdmscale.evaluation.lm_eval.report import items, plain, summary_rows
from mdmscale.evaluation.results import read_results
from mdmscale.generation import GenerationOptions, LoadedModel, encode_prompt, generate
from mdmscale.models.prompts import infilling_ids
from mdmscale.system.errors import UserError

TOOL = ROOT / "tools" / "evaluate.py"
ALL = "choice,word,write,whole"


def command(model: Path, tasks: Path, names: str, *others: object) -> list[str]:
    options = ["--include-path", tasks, "--tasks", names, "--rows", 8, "--dtype", "fp32", *others]
    return ["lm-eval", str(model), *map(str, options)]


@pytest.fixture(scope="module")
def output(model_folder: Path, tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of all tasks."""
    path = tmp_path_factory.mktemp("output") / "results.json"
    assert main(command(model_folder, tasks, ALL, "--output", path)) == 0
    return path


def questions(tasks: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tasks / "questions.jsonl").read_text().splitlines()]


def test_multiple_choice_takes_the_choice_that_our_likelihood_ranks_first(
    output: Path, tasks: Path, loaded: LoadedModel
) -> None:
    results = read_results(output)
    found = [item for item in results.items if item["task"] == "choice"]
    for item, question in zip(found, questions(tasks), strict=True):
        context = infilling_ids(loaded.tokenizer, question["question"].rstrip())
        spaces = question["question"][len(question["question"].rstrip()) :]
        choices = []
        for choice in question["choices"]:
            text = question["question"].rstrip() + spaces + " " + choice  # the harness's delimiter
            choices.append(Scored(context, infilling_ids(loaded.tokenizer, text)[len(context) :]))
        scores = list(log_likelihoods(loaded, choices, LikelihoodOptions(rows=8), 8))
        nats = [score.nats for score in scores]
        assert [answer[0] for answer in item["answers"]] == nats
        assert item["acc"] == float(nats.index(max(nats)) == question["answer"])
    (row,) = [row for row in results.summary if (row["task"], row["metric"]) == ("choice", "acc")]
    assert row["value"] == pytest.approx(1 / 3)
    assert row["num_items"] == 3 and row["standard_error"] == pytest.approx(1 / 3)


def test_written_answers_are_those_of_generate(output: Path, tasks: Path, loaded: LoadedModel) -> None:
    found = [item for item in read_results(output).items if item["task"] == "write"]
    requests = [encode_prompt(loaded, question["question"], 6) for question in questions(tasks)]
    texts = generate(loaded, requests, GenerationOptions(length=6))
    assert [item["answers"] for item in found] == [[each.text.split("\n")[0]] for each in texts]


def test_the_results_name_everything_that_decides_them(output: Path, model_folder: Path) -> None:
    results = read_results(output)
    assert (results.command, results.model) == ("lm-eval", str(model_folder))
    assert results.settings["tasks"] == ALL.split(",")
    assert results.settings["likelihood"]["rows"] == 8
    assert "lm-eval" in json.loads(output.read_text())["versions"]
    assert {row["task"] for row in results.summary} == set(ALL.split(","))
    assert len(results.items) == 12 and len({item["id"] for item in results.items}) == 12


def test_an_interrupted_command_continues(
    output: Path,
    model_folder: Path,
    tasks: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "results.json"
    asked: list[int] = []

    def interrupted(model: LoadedModel, jobs: Any, *others: Any) -> Any:
        asked.append(len(jobs))
        for number, score in enumerate(log_likelihoods(model, jobs, *others)):
            if len(asked) == 1 and number == 4:
                raise KeyboardInterrupt
            yield score

    monkeypatch.setattr("mdmscale.evaluation.lm_eval.model.log_likelihoods", interrupted)
    arguments = command(model_folder, tasks, ALL, "--output", path)
    with pytest.raises(KeyboardInterrupt):
        main(arguments)
    assert not path.exists()
    with pytest.raises(UserError, match="rows = 8, now 4"):
        main([*arguments, "--rows", "4"])
    main(arguments)
    assert asked[1] == asked[0] - 4
    assert "continuing with 4 answers" in capsys.readouterr().err
    assert read_results(path) == read_results(output)


def test_the_table_is_on_stdout_and_stderr_is_quiet(
    model_folder: Path, tasks: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    main(command(model_folder, tasks, "choice", "--limit", 2, "--num-fewshot", 0))
    captured = capfd.readouterr()
    assert captured.out.startswith("|Tasks ") and "|acc " in captured.out
    assert captured.err == ""


def test_the_task_files_of_the_harness_are_read_only_if_they_are_needed(
    tasks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    defaults = []

    def spied(include_path: str | None, include_defaults: bool = True) -> TaskManager:
        defaults.append(include_defaults)
        return TaskManager(include_path=include_path, include_defaults=False)

    monkeypatch.setattr(harness, "TaskManager", spied)
    assert set(harness.load_tasks(["choice"], tasks)["tasks"]) == {"choice"}
    assert set(harness.load_tasks([str(tasks / "word.yaml")], None)["tasks"]) == {"word"}
    assert defaults == [False, False]
    with pytest.raises(UserError, match=r"--tasks choise: no such task .* did you mean choice"):
        harness.load_tasks(["choise"], tasks)
    assert defaults[2:] == [False, True]


def test_a_task_that_cannot_be_loaded_is_named(tasks: Path, tmp_path: Path) -> None:
    text = (tasks / "choice.yaml").read_text().replace("questions.jsonl", "gone.jsonl")
    (tmp_path / "broken.yaml").write_text(text.replace("task: choice", "task: broken"))
    with pytest.raises(UserError, match=r"--tasks broken: cannot be loaded: .*gone\.jsonl"):
        harness.load_tasks(["broken"], tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--num-fewshot", -1), "--num-fewshot -1: must be 0 or more"),
        (("--rows", 3), "rows = 3: must be a positive multiple of 4"),
        (("--steps", 9, "--length", 4), "steps = 9: exceeds length = 4"),
    ],
)
def test_wrong_options_are_refused(
    model_folder: Path, tasks: Path, options: tuple[object, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        main(command(model_folder, tasks, "choice", *options))


def test_without_the_harness_the_extra_is_named(
    model_folder: Path, tasks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mdmscale.evaluation.lm_eval.installed.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'mdmscale\[lm-eval\]'"):
        main(command(model_folder, tasks, "choice"))


def test_help_needs_neither_the_harness_nor_torch() -> None:
    script = (
        "import sys; from mdmscale.evaluate_command import build_parser as build;"
        "build('lm-eval').format_help();"
        "sys.exit(bool({'torch', 'lm_eval', 'transformers'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


@pytest.mark.slow
@pytest.mark.distributed
def test_two_ranks_give_the_results_of_one(
    output: Path, model_folder: Path, tasks: Path, tmp_path: Path
) -> None:
    path = tmp_path / "results.json"
    run_ranks(2, TOOL, *command(model_folder, tasks, ALL, "--output", path))
    assert not list(tmp_path.glob("*partial*"))
    one, two = read_results(output), read_results(path)
    assert [row | {"value": pytest.approx(row["value"])} for row in two.summary] == one.summary
    for first, second in zip(one.items, two.items, strict=True):
        assert first["id"] == second["id"] and first["question"] == second["question"]
        assert plain_numbers(first) == pytest.approx(plain_numbers(second), rel=1e-5)
        if first["task"] == "write":
            assert first == second


def plain_numbers(item: dict[str, Any]) -> list[float]:
    """The log-likelihoods of an item. In fp32 another batch may change their last digits."""
    if item["task"] == "write":
        return []
    return [answer[0] if isinstance(answer, list) else answer for answer in item["answers"]]


@pytest.mark.slow
def test_the_harness_s_own_command_line_has_the_model(
    output: Path, model_folder: Path, tasks: Path, tmp_path: Path
) -> None:
    arguments = ["--model", "mdmscale", "--model_args", f"pretrained={model_folder},rows=8,dtype=fp32"]
    arguments += ["--include_path", str(tasks), "--tasks", "choice,word", "--output_path", str(tmp_path)]
    program = [sys.executable, "-m", "mdmscale.evaluation.lm_eval", "run", *arguments]
    done = subprocess.run(program, cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.rglob("results_*.json")
    found = json.loads(file.read_text())["results"]
    for row in read_results(output).summary:
        if row["task"] in ("choice", "word"):
            assert found[row["task"]][f"{row['metric']},none"] == row["value"]


def test_groups_have_rows_of_their_own_and_errors_may_be_missing() -> None:
    results = {
        "results": {
            "all": {"alias": "all", "acc,none": 0.5, "acc_stderr,none": "N/A"},
            "one": {"alias": " - one", "acc,strict": 0.5, "acc_stderr,strict": 0.1, "sample_len": 4},
        },
        "groups": {"all": {"alias": "all", "acc,none": 0.5, "acc_stderr,none": "N/A"}},
        "n-shot": {"one": 2},
        "n-samples": {"one": {"original": 9, "effective": 4}},
        "higher_is_better": {"one": {"acc": True}},
        "versions": {"one": 1.0},
    }
    one, group = summary_rows(results)
    assert (one["task"], one["filter"], one["standard_error"]) == ("one", "strict", 0.1)
    assert (one["num_items"], one["num_fewshot"], one["higher_is_better"]) == (4, 2, True)
    assert (group["task"], group["is_group"], group["standard_error"]) == ("all", True, None)


def test_what_json_lacks_becomes_plain() -> None:
    import numpy as np

    assert plain({1: (np.float64(0.5), np.array([1, 2]), Path("x"), None, {"a"})}) == {
        "1": [0.5, [1, 2], "x", None, ["a"]]
    }
    sample = {"filter": "none", "doc_id": 0, "metrics": ["acc"], "acc": np.int64(1), "target": "t"}
    sample |= {"filtered_resps": ["r"], "doc": {"q": 1}, "prompt_hash": "h"}
    (item,) = items({"samples": {"task": [sample]}})
    assert item["acc"] == 1 and json.dumps(item)
