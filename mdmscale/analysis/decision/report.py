"""Files of the study: tables and sentences in report.md, all numbers in results.json, and figures."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mdmscale.analysis.decision.comparison import clipped_share, difference, gradient_variation, spread_ratio
from mdmscale.analysis.decision.part import WEIGHTS, Condition
from mdmscale.analysis.decision.stages import Gate, Results
from mdmscale.analysis.decision.verdict import (
    Regimes,
    answers,
    described,
    goal,
    points,
    ratio,
    signed,
)
from mdmscale.system.files import write_file
from mdmscale.training.figures import new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Tuning = dict[Condition, Results]


def markdown(headings: list[str], rows: list[list[str]]) -> list[str]:
    return [
        "| " + " | ".join(headings) + " |",
        "|" + "---|" * len(headings),
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
    ]


def summary(results: Results) -> dict[str, Any]:
    """The numbers of a condition, by seed."""
    condition = results.condition
    found: dict[str, Any] = {
        "condition": condition.name,
        "arm": asdict(condition.arm),
        "rows": condition.arm.rows,
        "learning_rate": float(results.rates[0]),
        "seeds": results.seeds.tolist(),
        "gradient_variation": gradient_variation(results.gradient_norms),
        "clipped_share": clipped_share(results.gradient_norms, condition.clipping),
    }
    for weights, name in enumerate(WEIGHTS):
        found[f"nll_{name}"] = results.likelihoods(weights).of_seeds.tolist()
        if results.is_right is not None:
            found[f"accuracy_{name}"] = results.accuracies(weights).of_seeds.tolist()
    return found


def fine_tuning_lines(gates: list[Gate], tuning: Tuning, final: Tuning) -> list[str]:
    """The section of the fine-tuning part."""
    lines = ["## Fine-tuning", "", *(line for gate in gates for line in (gate.sentence(), ""))]
    if not final:
        return [*lines, "The study stops here.", ""]
    regimes = Regimes(final)
    for question, sentences in answers(regimes):
        if sentences:
            lines += [f"### {question}", "", *(f"- {sentence}" for sentence in sentences), ""]
    lines += ["### The goal", "", *(f"- {sentence}" for sentence in goal(regimes)), ""]
    for regime in regimes.names:
        arms = regimes.of(regime)
        lines += [f"### Equal samples: {described(regime)}", ""]
        lines += _accuracy_table(
            arms, [n for n, r in arms.items() if r.condition.arm.samples == 1], "standard"
        )
        if "standard_2x" in arms:
            lines += [f"### Equal rows: {described(regime)}", ""]
            same = [name for name, each in arms.items() if each.condition.arm.rows == 2]
            lines += _accuracy_table(arms, same, "standard_2x")
    return [*lines, *_tuning_lines(tuning)]


def _accuracy_table(arms: dict[str, Results], names: list[str], reference: str) -> list[str]:
    headings = ["arm", "rows", "lr", "accuracy", "worst seed", "NLL", "accuracy, EMA", "NLL, EMA"]
    headings += [f"against {reference}", "NLL", "spread times", "grad norm std/mean", "clipped steps"]
    rows = []
    for name in names:
        results = arms[name]
        cells = [name, str(results.condition.arm.rows), f"{results.rates[0]:g}"]
        for weights in range(len(WEIGHTS)):
            scores = results.accuracies(weights)
            cells.append(f"{100 * scores.mean:.1f} ± {100 * scores.spread:.1f}")
            if weights == 0:
                cells.append(f"{100 * scores.of_seeds.min():.1f}")
            cells.append(f"{results.likelihoods(weights).mean:.4f}")
        base = arms.get(reference)
        if base is None or name == reference:
            cells += ["-"] * 3
        else:
            cells += [
                points(difference(results.accuracies(), base.accuracies())),
                signed(difference(results.likelihoods(), base.likelihoods())),
                ratio(spread_ratio(results.accuracies(), base.accuracies())),
            ]
        cells.append(f"{gradient_variation(results.gradient_norms):.2f}")
        cells.append(f"{clipped_share(results.gradient_norms, results.condition.clipping):.0%}")
        rows.append(cells)
    return markdown(headings, rows)


def from_scratch_lines(tuning: Tuning, final: Tuning) -> list[str]:
    """The section of the part from scratch."""
    lines = ["## From scratch, at equal rows", ""]
    base = next(results for condition, results in final.items() if condition.arm.name == "standard")
    headings = ["arm", "samples x rows", "lr", "held-out loss", "worst seed", "with EMA"]
    headings += ["against standard", "spread times", "grad norm std/mean", "clipped steps"]
    rows = []
    for condition, results in final.items():
        raw, averaged = (results.likelihoods(weights) for weights in range(len(WEIGHTS)))
        arm, is_base = condition.arm, results is base
        rows.append(
            [
                arm.name,
                f"{arm.samples} x {arm.diffusion.rows_per_sample}",
                f"{results.rates[0]:g}",
                f"{raw.mean:.3f} ± {raw.spread:.3f}",
                f"{raw.of_seeds.max():.3f}",
                f"{averaged.mean:.3f} ± {averaged.spread:.3f}",
                "-" if is_base else signed(difference(raw, base.likelihoods())),
                "-" if is_base else ratio(spread_ratio(raw, base.likelihoods())),
                f"{gradient_variation(results.gradient_norms):.2f}",
                f"{clipped_share(results.gradient_norms, condition.clipping):.0%}",
            ]
        )
    return [*lines, *markdown(headings, rows), *_tuning_lines(tuning)]


def _tuning_lines(tuning: Tuning) -> list[str]:
    """The mean on the tuning split at every learning rate. The chosen one is bold."""
    lines = ["### Tuning of the learning rate", ""]
    rates = np.unique(np.concatenate([results.rates for results in tuning.values()]))
    rows = []
    for condition, results in tuning.items():
        means = {rate: results.at_rate(rate).quality().mean for rate in np.unique(results.rates)}
        best = max(means.values())
        rows.append(
            [
                condition.name,
                *(
                    f"**{means[rate]:.3f}**" if means[rate] == best else f"{means[rate]:.3f}"
                    for rate in rates
                ),
            ]
        )
    return lines + markdown(["condition", *(f"{rate:g}" for rate in rates)], rows)


def seeds_figure(arms: dict[str, Results], title: str) -> "Figure":
    """Every seed of every arm, and the mean of each: accuracy, or the held-out loss where there is none."""
    figure = new_figure(width=max(6.0, 0.5 * len(arms) + 2), height=4.4)
    axes = figure.subplots()
    for place, results in enumerate(arms.values()):
        has_answers = results.is_right is not None
        values = (results.accuracies() if has_answers else results.likelihoods()).of_seeds
        axes.plot([place] * len(values), values, "o", color="C0", alpha=0.4, markersize=4)
        axes.plot([place - 0.3, place + 0.3], [values.mean()] * 2, color="C1", linewidth=2)
    axes.set_xticks(range(len(arms)), list(arms), rotation=60, ha="right", fontsize=8)
    axes.set_ylabel("accuracy" if has_answers else "held-out loss, nats a token")
    axes.set_title(title, fontsize=9)
    return figure


def write_report(
    folder: Path,
    identity: dict[str, Any],
    gates: list[Gate],
    tuning: dict[str, Tuning],
    final: dict[str, Tuning],
) -> str:
    """Write report.md, results.json and figures. Returns the report.

    Args:
        tuning, final: of each part by its name.
    """
    lines = ["# Which variance reduction changes results", ""]
    if "fine_tuning" in tuning:
        lines += fine_tuning_lines(gates, tuning["fine_tuning"], final.get("fine_tuning", {}))
    if "from_scratch" in final:
        lines += from_scratch_lines(tuning["from_scratch"], final["from_scratch"])
    text = "\n".join(lines)
    write_file(folder / "report.md", text)
    values = {
        "study": identity,
        "gates": [{**asdict(gate), "is_open": gate.is_open} for gate in gates],
        "results": {part: [summary(each) for each in found.values()] for part, found in final.items()},
    }
    write_file(folder / "results.json", json.dumps(values, indent=1))
    for part, found in final.items():  # none where the gate is closed
        regimes = Regimes(found)
        for regime in regimes.names:
            name = f"{part}_{regime[0]}_{'clipped' if regime[1] else 'unclipped'}.png"
            save_figure(seeds_figure(regimes.of(regime), described(regime)), folder / name)
    return text
