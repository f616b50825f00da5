"""What a run and a study report."""

import json
from pathlib import Path

import pytest

from mdmscale.analysis.study.report import rows, write
from mdmscale.analysis.study.results import RunResult, result_of_run


def run(method: str, seed: int, right: int, loss: float, gradient_spread: float) -> RunResult:
    scores = tuple(float(item < right) for item in range(20))
    return RunResult(method, seed, scores, loss, gradient_spread, steps=100, samples=1600, seconds=12.4)


RESULTS = [
    run("standard", 42, 10, 1.0, 0.6),
    run("standard", 731, 14, 1.1, 0.4),
    run("mirror", 42, 12, 1.0, 0.3),
    run("mirror", 731, 13, 1.0, 0.3),
]


def test_a_method_is_a_row_with_its_seeds_mean_spread_and_worst() -> None:
    standard, mirror = rows(RESULTS, "standard")
    assert standard == [
        *["standard", "50.0% / 70.0%", "60.0%", "14.1", "50.0%", "-"],
        *["0.50", "1.0500", "100", "1,600", "12"],
    ]
    assert mirror[:5] == ["mirror", "60.0% / 65.0%", "62.5%", "3.5", "60.0%"]
    assert mirror[5].startswith("+2.5 (-") and " to +" in mirror[5]


def test_results_are_written_for_people_and_machines(tmp_path: Path) -> None:
    write(RESULTS, "standard", "exact match", {"budget": "equal-rows"}, tmp_path)
    values = json.loads((tmp_path / "results.json").read_text())
    assert values["results"][1]["accuracy"] == 0.70 and "scores" not in values["results"][1]
    assert values["comparisons"][0]["method"] == "mirror" and values["study"] == {"budget": "equal-rows"}
    assert values["answer"].startswith("Undecided: mirror, as 2 seeds with a spread of 10.3 points")
    report = (tmp_path / "report.md").read_text()
    assert "| mirror | 60.0% / 65.0% | 62.5% |" in report
    assert values["answer"] in report and "best seed of standard 70.0%; worst seed of mirror 60.0%" in report
    assert (tmp_path / "accuracy.png").stat().st_size > 1000


def test_a_run_is_measured_over_its_second_half_and_timed_as_a_whole(tmp_path: Path) -> None:
    records = [{"loss": 9.0, "grad_norm": 9.0}] * 2 + [
        {"loss": 1.0, "grad_norm": 1.0},
        {"loss": 2.0, "grad_norm": 3.0},
    ]
    more = {"seconds_data": 0.5, "seconds_step": 1.0, "consumed_samples": 32}
    (tmp_path / "metrics.jsonl").write_text(
        "".join(json.dumps({"step": step, **record, **more}) + "\n" for step, record in enumerate(records, 1))
    )
    result = result_of_run(tmp_path, "mirror", 42, [1.0, 0.0])
    assert result.loss == pytest.approx(1.5)
    assert result.gradient_spread == pytest.approx(0.5)
    assert (result.steps, result.samples, result.seconds, result.accuracy) == (4, 32, 6.0, 0.5)
