"""`evaluate tasks` and `evaluate records`, as users call them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, run_ranks

from mdmscale.evaluate_command import main
from mdmscale.evaluation.results import read_results
from mdmscale.evaluation.tasks.summary import summarise
from mdmscale.evaluation.tasks.work import check_names, data_files
from mdmscale.system.errors import UserError
from mdmscale.system.partial_output import PartialOutput

TOOL = ROOT / "tools" / "evaluate.py"
SAMPLING = ("--set", "length=8", "steps=4", "--batch-size", "3")


def tasks(*arguments: object) -> int:
    return main(["tasks", *map(str, arguments)])


def test_a_table_and_no_file(model_folder: Path, pairs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tasks(model_folder, "--task", "exact", "--data", pairs, "--limit", 4, *SAMPLING) == 0
    row = capsys.readouterr().out.splitlines()[-2].split()
    assert row[:4] == ["exact", "-", "4", "0.0%"] and row[7:10] == ["0.0%", "4.0", "2.00"]


def test_results_hold_every_answer_and_the_curve_of_several_settings(
    model_folder: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("reasoning_gym")
    output = tmp_path / "results.json"
    what = ("--task", "exact", "--task", "reasoning-gym:coin_flip", "--data", pairs, "--limit", 3)
    assert tasks(model_folder, *what, "--set", "length=8", "steps=2,4", "--output", output) == 0
    results = read_results(output)
    assert [(item["task"], item["setting"], item["id"]) for item in results.items] == [
        (task, setting, f"q{number}" if task == "exact" else number)
        for task in ("exact", "reasoning-gym:coin_flip")
        for setting in ("steps=2", "steps=4")
        for number in range(3)
    ]
    assert [entry["forwards_per_text"] for entry in results.summary] == [2, 4, 2, 4]
    again = summarise("exact", "steps=4", results.items[3:6])
    assert results.summary[1] == {**again, "aup": results.summary[0]["aup"]}
    assert list(results.settings["tasks"]) == ["exact", "reasoning-gym:coin_flip"]
    assert [each["steps"] for each in results.settings["decoding"]] == [2, 4, 2, 4]
    assert "AUP" in capsys.readouterr().out


def test_answers_under_other_decoding_are_compared_with_a_note(
    model_folder: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    for file, steps in zip(files, (8, 2), strict=True):
        options = ("--data", pairs, "--set", "length=8", f"steps={steps}", "--output", file)
        tasks(model_folder, "--task", "exact", *options)
    capsys.readouterr()
    assert main(["compare", *map(str, files)]) == 0
    printed = capsys.readouterr().out
    assert "exact, accuracy" in printed and "decoding differs: steps 8 and 2" in printed


@pytest.mark.distributed
def test_ranks_share_the_questions_and_an_interrupted_command_continues(
    model_folder: Path,
    pairs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = (model_folder, "--task", "exact", "--data", pairs, "--dtype", "fp32", *SAMPLING)
    alone, shared = tmp_path / "alone.json", tmp_path / "shared.json"
    tasks(*arguments, "--output", alone)

    append, calls = PartialOutput.append, []

    def interrupted(self: PartialOutput, lines: dict) -> None:  # type: ignore[type-arg]
        append(self, lines)
        calls.append(lines)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(PartialOutput, "append", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tasks(*arguments, "--output", shared)
    assert not shared.exists() and sum(map(len, calls)) == 6
    assert "shared.json: the same command continues after 6 answers" in capsys.readouterr().err

    printed = run_ranks(2, TOOL, "tasks", *map(str, arguments), "--output", str(shared))
    assert "shared.json: continuing after 6 of 7 answers" in printed and "shared.json: 7 answers" in printed
    without_time = [[{**item, "seconds": 0} for item in read_results(file).items] for file in (alone, shared)]
    assert without_time[0] == without_time[1]
    assert not list(tmp_path.glob("*.partial-*"))


def test_half_written_results_of_other_settings_are_not_continued(
    model_folder: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = PartialOutput.append

    def interrupted(self: PartialOutput, lines: dict) -> None:  # type: ignore[type-arg]
        append(self, lines)
        raise KeyboardInterrupt

    output = tmp_path / "results.json"
    arguments = (model_folder, "--task", "exact", "--data", pairs, "--output", output)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(PartialOutput, "append", interrupted)
        tasks(*arguments, *SAMPLING)
    with pytest.raises(UserError, match="was begun with settings"):
        tasks(*arguments, "--set", "length=8", "steps=2")
    with pytest.raises(UserError, match="was begun with items"):
        tasks(*arguments, *SAMPLING, "--limit", 2)
    tasks(*arguments, "--set", "length=8", "steps=2", "--overwrite")
    assert len(read_results(output).items) == 7


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--task", "exct"], r"there is no task 'exct'; did you mean exact\?"),
        (["--task", "exact"], "task exact: has no data of its own; give it with --data FILE"),
        (["--task", "exact", "--data", "none.jsonl"], "no such file"),
        (["--task", "exact", "--data", "{pairs}", "--limit", "0"], "--limit 0: must be at least 1"),
        (["--task", "exact", "--data", "{pairs}", "--set", "length=300"], "exceeds the model's"),
        (["--task", "exact", "--task", "gsm8k", "--data", "{pairs}"], "say for which task: --data TASK="),
    ],
)
def test_bad_input(model_folder: Path, pairs: Path, options: list[str], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        tasks(model_folder, *(option.format(pairs=pairs) for option in options))


def test_two_tasks_of_one_name_are_refused() -> None:
    check_names(["a/one.yaml", "two.yaml", "reasoning-gym:gcd"])
    with pytest.raises(UserError, match=r"--task a/one.yaml and --task b/one.yaml: have the same name"):
        check_names(["a/one.yaml", "b/one.yaml"])


def test_which_file_is_whose() -> None:
    a, b = Path("a.jsonl"), Path("b.jsonl")
    assert data_files([], ["gsm8k"]) == {"gsm8k": None}
    assert data_files(["a.jsonl"], ["reasoning-gym:gcd", "gsm8k"]) == {"reasoning-gym:gcd": None, "gsm8k": a}
    both = data_files(["gsm8k=a.jsonl", "exact=b.jsonl"], ["gsm8k", "exact"])
    assert both == {"gsm8k": a, "exact": b}
    with pytest.raises(UserError, match="has one already"):
        data_files(["a.jsonl", "b.jsonl"], ["gsm8k"])


def test_the_list_and_the_help_need_no_torch() -> None:
    code = (
        "import sys\n"
        "from mdmscale.evaluate_command import build_parser, main\n"
        "for name in ('tasks', 'records'): print(build_parser(name).format_help())\n"
        "try: main(['tasks', '--list'])\n"
        "except SystemExit as leaving: assert leaving.code == 0\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    for text in ("examples:", "--preset", "gsm8k", "hitab"):
        assert text in result.stdout


def test_records(tmp_path: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, output = tmp_path / "gsm8k.jsonl", tmp_path / "new" / "train.jsonl"
    lines = [{"question": f"{n} + 1?", "answer": f"<<{n}+1={n + 1}>>\n#### {n + 1}"} for n in range(5)]
    data.write_text("\n".join(map(json.dumps, lines)))

    def records(*options: object) -> list[dict[str, object]]:
        what = ["records", "--task", "gsm8k", "--data", data, "--output", output, *options]
        assert main([str(part) for part in what]) == 0
        return [json.loads(line) for line in output.read_text().splitlines()]

    chats = records("--limit", 3)
    assert len(chats) == 3
    assert chats[0]["messages"] == [
        {"role": "user", "content": "0 + 1?"},
        {"role": "assistant", "content": "\n#### 1"},
    ]
    assert "3 conversations" in capsys.readouterr().out
    with pytest.raises(UserError, match="exists already"):
        records()
    plain = records("--plain", "--overwrite")
    assert plain[4] == {"prompt": "Question: 4 + 1?\nAnswer:\n", "response": "\n#### 5"}
    assert records("--tokenizer", model_folder, "--overwrite") == plain  # which has no template
