"""The command, at tiny sizes: its files, that it goes on where it stopped, and that the gate stops it."""

import json
from pathlib import Path

import pytest

from mdmscale.analysis.decision.decide_command import main
from mdmscale.analysis.decision.hops import HopsTask, QuestionSet
from mdmscale.system.errors import UserError

ARMS = "standard,rows_8,batch_4x,exact_pair_gradient"


def decide(output: Path, *options: str) -> None:
    assert main(["--output", str(output), "--quick", "--jobs", "1", "--seeds", "2", *options]) == 0


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.suffix in (".npz", ".json", ".md")
    }


def test_an_interrupted_study_goes_on_with_the_same_numbers(tmp_path: Path) -> None:
    options = ("--parts", "fine_tuning", "--arms", ARMS, "--past-gate")
    decide(tmp_path, *options)
    whole = contents(tmp_path)
    lost = sorted(tmp_path.rglob("*.npz"))[::2]
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz") if path not in lost}
    for path in lost:
        path.unlink()
    decide(tmp_path, *options)
    assert contents(tmp_path) == whole
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "finished units stay"
    results = json.loads(whole["results.json"])["results"]["fine_tuning"]
    conditions = {each["condition"] for each in results}
    assert {
        "standard.constant.clipped",
        "standard.linear.clipped",
        "standard.constant.unclipped",
    } <= conditions
    assert all(len(each["accuracy_raw"]) == 2 and len(each["nll_ema"]) == 2 for each in results)
    assert b"### Equal samples" in whole["report.md"]
    assert b"The best rate is the first or last one tried" in whole["report.md"], "there are only two"
    assert (tmp_path / "fine_tuning_linear_clipped.png").stat().st_size > 5000


def test_the_gate_stops_the_study_before_the_held_out_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    questions = HopsTask.questions

    def watched(self: HopsTask, which: QuestionSet, first: int, num: int):  # type: ignore[no-untyped-def]
        opened.append(which)
        return questions(self, which, first, num)

    monkeypatch.setattr(HopsTask, "questions", watched)
    decide(tmp_path, "--parts", "fine_tuning", "--arms", ARMS)
    report = (tmp_path / "report.md").read_text()
    assert "not limited by noise" in report and "The study stops here." in report
    assert not (tmp_path / "fine_tuning" / "final").exists()
    assert QuestionSet.TUNING in opened and QuestionSet.HELD_OUT not in opened


def test_rates_are_fixed_before_the_held_out_set_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = HopsTask.questions
    fixed = tmp_path / "fine_tuning" / "learning_rates.json"

    def watched(self: HopsTask, which: QuestionSet, first: int, num: int):  # type: ignore[no-untyped-def]
        assert which != QuestionSet.HELD_OUT or fixed.exists()
        return questions(self, which, first, num)

    monkeypatch.setattr(HopsTask, "questions", watched)
    decide(tmp_path, "--parts", "fine_tuning", "--arms", "standard", "--past-gate")
    assert len(json.loads(fixed.read_text())) == 7  # three arms of the gate twice, and standard unclipped


def test_the_part_from_scratch_tells_losses_with_intervals(tmp_path: Path) -> None:
    decide(tmp_path, "--parts", "from_scratch", "--arms", "standard,exact_gradient,bell")
    report = (tmp_path / "report.md").read_text()
    assert "| exact_gradient | 8 x 1 |" in report and "| bell | 8 x 1 |" in report
    results = json.loads((tmp_path / "results.json").read_text())["results"]["from_scratch"]
    assert [each["rows"] for each in results] == [8, 8, 8]
    assert all(5 < loss < 7 for each in results for loss in each["nll_raw"]), "log 401 is 6.0"


def test_a_folder_of_other_sizes_is_refused_and_a_dry_run_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    decide(tmp_path / "new", "--dry-run")
    assert not (tmp_path / "new").exists()
    assert "minutes of a core are left" in capsys.readouterr().out
    other = {"settings": {}, "arms": {"standard": {"name": "another"}}}
    (tmp_path / "study.json").write_text(json.dumps({"fine_tuning": other}))
    with pytest.raises(UserError) as error:
        decide(tmp_path)
    assert [line.partition(": ")[2] for line in error.value.problems] == [
        "holds a study of fine_tuning with other sizes; choose another",
        "has results of the arm standard of fine_tuning with other options; choose another",
    ]


def test_bad_options_are_told_together(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        main(["--output", str(tmp_path), "--parts", "tuning", "--seeds", "1", "--jobs", "0"])
    assert len(error.value.problems) == 3
