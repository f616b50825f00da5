import json
from pathlib import Path

import pytest

from mdmscale.analysis.study.results import RunResult, result_of_run, rows, verdict, write

RESULTS = [
    RunResult("standard", 42, 0.50, 1.0, 0.6),
    RunResult("standard", 731, 0.70, 1.1, 0.4),
    RunResult("mirror", 42, 0.60, 1.0, 0.3),
    RunResult("mirror", 731, 0.65, 1.0, 0.3),
]


def test_a_method_is_a_row_with_its_seeds_mean_spread_and_worst() -> None:
    standard, mirror = rows(RESULTS)
    assert standard == ["standard", "50.0% / 70.0%", "60.0%", "14.1", "50.0%", "0.50", "1.0500"]
    assert mirror[:5] == ["mirror", "60.0% / 65.0%", "62.5%", "3.5", "60.0%"]


def test_the_verdict_sets_the_worst_of_ours_against_the_best_of_standard() -> None:
    assert verdict(RESULTS) == "best seed of standard 70.0%; worst seed of mirror 60.0%"
    assert verdict(RESULTS[2:]) == ""


def test_results_are_written_for_people_and_machines(tmp_path: Path) -> None:
    write(RESULTS, tmp_path, [42, 731])
    assert json.loads((tmp_path / "results.json").read_text())["results"][1]["accuracy"] == 0.70
    report = (tmp_path / "report.md").read_text()
    assert "| mirror | 60.0% / 65.0% | 62.5% |" in report and "best seed of standard 70.0%" in report
    assert (tmp_path / "accuracy.png").stat().st_size > 1000


def test_a_run_is_measured_over_its_second_half(tmp_path: Path) -> None:
    records = [{"loss": 9.0, "grad_norm": 9.0}] * 2 + [
        {"loss": 1.0, "grad_norm": 1.0},
        {"loss": 2.0, "grad_norm": 3.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    result = result_of_run(tmp_path, "mirror", 42, 0.5)
    assert result.loss == pytest.approx(1.5)
    assert result.gradient_spread == pytest.approx(0.5)
