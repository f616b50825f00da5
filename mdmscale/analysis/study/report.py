"""The report of a study: a table on the terminal, report.md, results.json and a figure."""

import json
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from mdmscale.analysis.study.results import RunResult, by_method, spread
from mdmscale.analysis.study.verdict import answer, compare, control_answer, worst_against_best
from mdmscale.system.files import write_file
from mdmscale.training.figures import new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEADINGS = [
    "method",
    "by seed",
    "mean",
    "spread (points)",
    "worst",
    "against the reference (95%)",
    "grad norm std/mean",
    "training loss",
    "steps",
    "samples",
    "seconds",
]
LEFT = HEADINGS[:2]


def rows(results: list[RunResult], reference: str) -> list[list[str]]:
    """The table's cells, a row for each method; numbers but the accuracies are means over its seeds."""
    compared = {each.method: each.interval for each in compare(results, reference)}
    lines = []
    for method, group in by_method(results).items():
        accuracies = [result.accuracy for result in group]
        interval = compared.get(method)
        difference = (
            "-"
            if interval is None
            else f"{100 * interval.mean:+.1f} ({100 * interval.low:+.1f} to {100 * interval.high:+.1f})"
        )
        lines.append(
            [
                method,
                " / ".join(f"{accuracy:.1%}" for accuracy in accuracies),
                f"{mean(accuracies):.1%}",
                f"{100 * spread(accuracies):.1f}",
                f"{min(accuracies):.1%}",
                difference,
                f"{mean(result.gradient_spread for result in group):.2f}",
                f"{mean(result.loss for result in group):.4f}",
                f"{mean(result.steps for result in group):,.0f}",
                f"{mean(result.samples for result in group):,.0f}",
                f"{mean(result.seconds for result in group):,.0f}",
            ]
        )
    return lines


def sentences(results: list[RunResult], reference: str) -> list[str]:
    """The answer, the control's, and the paper's comparison; those that there are."""
    found = (
        answer(results, reference),
        control_answer(results, reference),
        worst_against_best(results, reference),
    )
    return [sentence for sentence in found if sentence]


def show(console: Console, results: list[RunResult], reference: str, what: str) -> None:
    """Print the table and the sentences."""
    table = Table(title=what, title_justify="left")
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading in LEFT else "right")
    for cells in rows(results, reference):
        table.add_row(*cells)
    console.print(table)
    for sentence in sentences(results, reference):
        console.print(sentence, highlight=False, soft_wrap=True)


def write(
    results: list[RunResult], reference: str, what: str, identity: dict[str, Any], folder: Path
) -> None:
    """Write results.json, report.md and accuracy.png."""
    values = {
        "what": what,
        "reference": reference,
        "study": identity,
        "results": [result.summary() for result in results],
        "comparisons": [asdict(each) for each in compare(results, reference)],
        "answer": answer(results, reference),
        "control": control_answer(results, reference),
        "worst_against_best": worst_against_best(results, reference),
    }
    write_file(folder / "results.json", json.dumps(values, indent=1))
    seeds = dict.fromkeys(result.seed for result in results)
    lines = [
        f"# {what[0].upper()}{what[1:]}, seeds {', '.join(map(str, seeds))}",
        "",
        "| " + " | ".join(HEADINGS) + " |",
        "|" + "---|" * len(HEADINGS),
        *("| " + " | ".join(cells) + " |" for cells in rows(results, reference)),
        *(line for sentence in sentences(results, reference) for line in ("", sentence)),
    ]
    write_file(folder / "report.md", "\n".join(lines) + "\n")
    save_figure(accuracy_figure(results, what), folder / "accuracy.png")


def accuracy_figure(results: list[RunResult], what: str) -> "Figure":
    """The accuracy of every run, and the mean of each method."""
    figure = new_figure()
    axes = figure.subplots()
    groups = by_method(results)
    for place, group in enumerate(groups.values()):
        accuracies = [result.accuracy for result in group]
        axes.plot([place] * len(group), accuracies, "o", color="C0", alpha=0.6)
        axes.plot([place - 0.2, place + 0.2], [mean(accuracies)] * 2, color="C1", linewidth=2)
    axes.set_xticks(range(len(groups)), list(groups))
    axes.set_ylabel(what)
    return figure
