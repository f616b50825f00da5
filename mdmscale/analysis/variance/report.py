"""The report: the variance of every method relative to standard, its sources, and what to do."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from mdmscale.analysis.variance.collect import Collected
from mdmscale.analysis.variance.estimates import (
    Estimate,
    Ratio,
    compute_variances,
    curves,
    interval,
    noise_scale,
    ratios,
)
from mdmscale.analysis.variance.figures import curve_figure, ratio_figure
from mdmscale.analysis.variance.recommendation import MethodResult, recommend
from mdmscale.analysis.variance.sums import MEASURES
from mdmscale.diffusion.density import DensityTable
from mdmscale.diffusion.p_pots import TABLE_EDGES
from mdmscale.system.console import plain_table
from mdmscale.training.figures import save_figure

EXPLANATION = (
    "Variance of standard over the method's, at equal forward rows; above 1 is better. Standard is one "
    "Bernoulli mask for each of as many different samples, uniform t, weights 1 / r. adam: the gradient "
    "divided by the root of its diagonal second moment (of standard, at the configured batch, from a pilot)."
)


@dataclass(frozen=True, eq=False)
class Report:
    """Everything that is written. provenance: config, checkpoint, data, samples and settings.

    parts: A, B, C and their sum, standard's variance, by measure. noise_scale: see estimates.noise_scale.
    """

    provenance: dict[str, Any]
    methods: dict[str, MethodResult]
    parts: dict[str, dict[str, Estimate]]
    noise_scale: Estimate | None
    curves: dict[str, list[float | None]]
    densities: dict[str, DensityTable]

    @property
    def recommendation(self) -> str:
        return recommend(self.methods, self.provenance["batch_rows"], self.noise_scale)


def make_report(provenance: dict[str, Any], collected: Collected) -> Report:
    """Compute the report. `provenance` holds batch_rows, the forward rows of the configured batch."""
    variances = compute_variances(collected)
    estimators = collected.estimators
    by_measure = {measure: ratios(variances.variance[:, :, place]) for place, measure in enumerate(MEASURES)}
    methods = {
        estimator.method.name: MethodResult(
            estimator.method.keys,
            estimator.rows,
            estimator.method.is_unbiased,
            dict(zip(MEASURES, variances.variance[0, number].tolist(), strict=True)),
            {measure: by_measure[measure][number] for measure in MEASURES},
            provenance["batch_rows"] * by_measure["gradient"][number].value,
        )
        for number, estimator in enumerate(estimators)
    }
    parts = {}
    for place, measure in enumerate(MEASURES):
        of_measure = variances.parts[:, :, place]  # [replicates, 3]
        parts[measure] = {name: interval(of_measure[:, part]) for part, name in enumerate("ABC")}
        parts[measure]["sum"] = interval(of_measure.sum(axis=1))
    densities = {
        each.method.name: each.t_sampler.density for each in estimators if "p_pots" in each.method.keys
    }
    draws = collected.waves.draws.reshape(-1, 5)
    scale = noise_scale(variances, MEASURES.index("gradient"))
    return Report(provenance, methods, parts, scale, curves(draws, TABLE_EDGES), densities)


def write(report: Report, folder: Path) -> None:
    """Write report.json, report.md and the figures into a folder that is not published yet."""
    (folder / "report.json").write_text(json.dumps(as_values(report), indent=1))
    (folder / "report.md").write_text(markdown(report))
    ratio = {name: result.ratio for name, result in report.methods.items()}
    save_figure(ratio_figure(ratio), folder / "ratios.png")
    save_figure(curve_figure(report.curves, TABLE_EDGES, report.densities), folder / "curves.png")


def as_values(report: Report) -> dict[str, Any]:
    """The content of report.json."""

    def spread(estimate: Estimate) -> dict[str, float]:
        return {"value": estimate.value, "low": estimate.low, "high": estimate.high}

    methods = {
        name: {
            "keys": result.keys,
            "rows": result.rows,
            "unbiased": result.is_unbiased,
            "variance": result.variance,
            "ratio": {measure: spread(ratio) for measure, ratio in result.ratio.items()},
            "effective_batch": result.effective_batch,
        }
        for name, result in report.methods.items()
    }
    return {
        **report.provenance,
        "recommendation": report.recommendation,
        "methods": methods,
        "decomposition": {
            measure: {name: spread(part) for name, part in parts.items()}
            for measure, parts in report.parts.items()
        },
        "noise_scale": None if report.noise_scale is None else spread(report.noise_scale),
        "curves": report.curves,
        "edges": np.asarray(TABLE_EDGES).tolist(),
        "densities": {name: density.to_state() for name, density in report.densities.items()},
    }


HEADINGS = ["method", "rows", "loss", "", "gradient", "", "adam", "", "effective batch"]


def _cells(name: str, result: MethodResult) -> Sequence[str]:
    def number(value: float) -> str:
        return f"{value:.2f}" if value < 100 else ">99"

    def span(ratio: Ratio) -> tuple[str, str]:
        return number(ratio.value), f"{number(ratio.low)}-{number(ratio.high)}"

    mark = "" if result.is_unbiased else " (another objective)"
    spans = [cell for measure in MEASURES for cell in span(result.ratio[measure])]
    return (name + mark, str(result.rows), *spans, f"{result.effective_batch:.0f}")


def ratio_table(report: Report) -> Table:
    """The terminal's table: standard's variance over each method's, at equal rows."""
    shown = plain_table("variance of standard over the method's, at equal rows", HEADINGS)
    shown.columns[0].justify = "left"
    for name, result in report.methods.items():
        shown.add_row(*_cells(name, result))
    return shown


def decomposition_lines(report: Report) -> list[str]:
    """A, B and C of the loss and of the gradient, a line each."""
    lines = []
    for measure, what in (
        ("loss", "variance of one row's loss"),
        ("gradient", "trace of one row's gradient"),
    ):
        found = report.parts[measure]
        shares = ", ".join(
            f"{name} ({source}) {found[name].value / found['sum'].value:.0%} "
            f"[{found[name].low / found['sum'].value:.0%}, {found[name].high / found['sum'].value:.0%}]"
            for name, source in (("A", "mask"), ("B", "t"), ("C", "data"))
        )
        total = found["sum"]
        lines.append(f"{what}: {total.value:.4g} [{total.low:.4g}, {total.high:.4g}]; {shares}")
    return lines


def markdown(report: Report) -> str:
    """report.md."""
    provenance = report.provenance
    lines = [
        f"# Variance of {provenance['checkpoint']} on {provenance['data']}",
        "",
        f"{provenance['samples']:,} samples, {provenance['rows']:,} forward rows, "
        f"{provenance['seconds']:.0f} s on {provenance['ranks']} ranks. Gradients of "
        f"{provenance['num_parameters']:,} parameters ({provenance['parameters'] or 'all'}). Batches of "
        f"{provenance['batch_rows']} rows.",
        "",
        *(f"- {line}" for line in decomposition_lines(report)),
        "",
        EXPLANATION,
        "Effective batch: the rows of standard with the gradient variance of the configured batch.",
        "",
        "| " + " | ".join(HEADINGS) + " |",
        "|---|" + "---:|" * (len(HEADINGS) - 1),
        *("| " + " | ".join(_cells(name, result)) + " |" for name, result in report.methods.items()),
        "",
        "![ratios](ratios.png)",
        "![curves](curves.png)",
        "",
        "## Recommendation",
        "",
        report.recommendation,
    ]
    return "\n".join(lines) + "\n"
