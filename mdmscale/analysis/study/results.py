"""The results of a stability study: accuracy by method and seed, its spread, tables and a figure."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table

from mdmscale.analysis.study.methods import BASELINE, OURS
from mdmscale.system.files import write_file
from mdmscale.training.figures import new_figure, save_figure
from mdmscale.training.metrics import read_metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class RunResult:
    """One run.

    Accuracy: share of test answers that match exactly. The rest is over the second half of its steps.

    gradient_spread: standard deviation of the gradient norm over its mean. loss: mean training loss.
    """

    method: str
    seed: int
    accuracy: float
    loss: float
    gradient_spread: float


def result_of_run(folder: Path, method: str, seed: int, accuracy: float) -> RunResult:
    """The result of a finished run, from its metrics."""
    records = read_metrics(folder)
    late = records[len(records) // 2 :]
    norms = np.array([record["grad_norm"] for record in late])
    loss = float(np.mean([record["loss"] for record in late]))
    return RunResult(method, seed, accuracy, loss, float(norms.std() / norms.mean()))


def by_method(results: list[RunResult]) -> dict[str, list[RunResult]]:
    """The results of each method, in order of first appearance."""
    return {
        method: [r for r in results if r.method == method]
        for method in dict.fromkeys(r.method for r in results)
    }


def spread(values: list[float]) -> float:
    """Standard deviation over seeds; 0 for a single seed."""
    return stdev(values) if len(values) > 1 else 0.0


def verdict(results: list[RunResult]) -> str:
    """The paper's comparison: the worst seed of each method with the best seed of standard."""
    groups = by_method(results)
    if BASELINE not in groups:
        return ""
    best = max(result.accuracy for result in groups[BASELINE])
    worst = {name: min(r.accuracy for r in groups[name]) for name in OURS if name in groups}
    words = [f"{name} {value:.1%}" for name, value in worst.items()]
    return f"best seed of standard {best:.1%}; worst seed of {', '.join(words)}" if words else ""


def rows(results: list[RunResult]) -> list[list[str]]:
    """Table cells: method, accuracy of each seed, mean, spread, worst, gradient spread, loss."""
    lines = []
    for method, group in by_method(results).items():
        accuracies = [result.accuracy for result in group]
        lines.append(
            [
                method,
                " / ".join(f"{accuracy:.1%}" for accuracy in accuracies),
                f"{mean(accuracies):.1%}",
                f"{100 * spread(accuracies):.1f}",
                f"{min(accuracies):.1%}",
                f"{mean(result.gradient_spread for result in group):.2f}",
                f"{mean(result.loss for result in group):.4f}",
            ]
        )
    return lines


HEADINGS = [
    "method",
    "accuracy by seed",
    "mean",
    "spread (points)",
    "worst",
    "grad norm std/mean",
    "training loss",
]


def results_table(results: list[RunResult]) -> Table:
    """The results as a table for the terminal."""
    shown = Table(title="exact match on the test set", title_justify="left")
    for heading in HEADINGS:
        shown.add_column(heading, justify="left" if heading in HEADINGS[:2] else "right")
    for cells in rows(results):
        shown.add_row(*cells)
    return shown


def write(results: list[RunResult], folder: Path, seeds: list[int]) -> None:
    """Write results.json, report.md and accuracy.png."""
    values = {"results": [asdict(result) for result in results], "verdict": verdict(results)}
    write_file(folder / "results.json", json.dumps(values, indent=1))
    lines = [
        f"# Stability over seeds {', '.join(map(str, seeds))}",
        "",
        "| " + " | ".join(HEADINGS) + " |",
        "|" + "---|" * len(HEADINGS),
        *("| " + " | ".join(cells) + " |" for cells in rows(results)),
        "",
        verdict(results),
    ]
    write_file(folder / "report.md", "\n".join(lines) + "\n")
    save_figure(accuracy_figure(results), folder / "accuracy.png")


def accuracy_figure(results: list[RunResult]) -> "Figure":
    """The accuracy of every run, and the mean of each method."""
    figure = new_figure()
    axes = figure.subplots()
    groups = by_method(results)
    for place, group in enumerate(groups.values()):
        accuracies = [result.accuracy for result in group]
        axes.plot([place] * len(group), accuracies, "o", color="C0", alpha=0.6)
        axes.plot([place - 0.2, place + 0.2], [mean(accuracies)] * 2, color="C1", linewidth=2)
    axes.set_xticks(range(len(groups)), list(groups))
    axes.set_ylabel("exact match")
    return figure
