"""The report: the variance of every method relative to standard, its sources, and figures."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from mdmscale.analysis.variance.collect import CollectedStatistics
from mdmscale.analysis.variance.decomposition import Estimate, decompose, loss_decomposition
from mdmscale.analysis.variance.methods import Coefficients, Method
from mdmscale.analysis.variance.moments import Moments, SampleStatistics, compute_moments
from mdmscale.diffusion.density import DensityTable
from mdmscale.training.figures import new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class MethodResult:
    """A method's variance, B times that of its batch mean, and standard's over it. Above 1 is better."""

    loss_variance: float
    grad_variance: float
    loss_ratio: float
    grad_ratio: float
    loss_interval: tuple[float, float]
    grad_interval: tuple[float, float]
    unbiased: bool


@dataclass(frozen=True, eq=False)
class Report:
    """Everything that is written. provenance: config, checkpoint, data, samples and settings."""

    provenance: dict[str, Any]
    edges: np.ndarray
    decomposition: dict[str, Estimate]
    gradient_decomposition: dict[str, float]
    curves: dict[str, list[float]]
    densities: dict[str, DensityTable]
    methods: dict[str, MethodResult]


def make_report(
    provenance: dict[str, Any],
    measured: CollectedStatistics,
    edges: np.ndarray,
    chosen: dict[str, tuple[Method, Coefficients]],
    densities: dict[str, DensityTable],
) -> Report:
    """Compute the report from the collected statistics."""
    widths = np.diff(edges)
    whole = compute_moments(measured.gradient, measured.groups, measured.gradient_products)
    return Report(
        provenance,
        edges,
        loss_decomposition(measured.loss, measured.mean_losses, measured.plain, widths),
        decompose(whole, widths),
        curves(measured, edges),
        densities,
        compare(measured, chosen),
    )


def compare(
    measured: CollectedStatistics, chosen: dict[str, tuple[Method, Coefficients]]
) -> dict[str, MethodResult]:
    """Compare every method with the first."""
    loss = _replicated(measured.loss, measured.groups, measured.loss_products)
    gradient = _replicated(measured.gradient, measured.groups, measured.gradient_products)
    baseline = next(iter(chosen.values()))[1]
    results = {}
    for name, (method, coefficients) in chosen.items():
        loss_ratio, loss_interval = _ratio(baseline, coefficients, loss)
        grad_ratio, grad_interval = _ratio(baseline, coefficients, gradient)
        results[name] = MethodResult(
            coefficients.variance(loss[0]),
            coefficients.variance(gradient[0]),
            loss_ratio,
            grad_ratio,
            loss_interval,
            grad_interval,
            method.is_unbiased,
        )
    return results


def curves(measured: CollectedStatistics, edges: np.ndarray) -> dict[str, list[float]]:
    """g, v, E l^2, E||grad||^2 and the head's proxy for it in each cell of t, with their standard errors."""
    count = math.sqrt(measured.num_samples)
    second = np.array([sample.single for sample in measured.loss])
    same_t = np.array([sample.same_t for sample in measured.loss])
    values = {
        "g": measured.mean_losses,
        "v": second - same_t,
        "second_moment": second,
        "grad_second_moment": np.array([sample.single for sample in measured.gradient]),
        "grad_proxy": measured.proxy,
    }
    found: dict[str, list[float]] = {"t": ((edges[:-1] + edges[1:]) / 2).tolist()}
    for name, each in values.items():
        found[name] = each.mean(axis=0).tolist()
        found[f"{name}_error"] = (each.std(axis=0, ddof=1) / count).tolist()
    return found


def _replicated(samples: list[SampleStatistics], groups: np.ndarray, products: np.ndarray) -> list[Moments]:
    """The moments of all samples, and then of those without each group."""
    return [
        compute_moments(samples, groups, products, left_out) for left_out in (None, *range(len(products)))
    ]


def _ratio(
    baseline: Coefficients, method: Coefficients, replicates: list[Moments]
) -> tuple[float, tuple[float, float]]:
    """baseline / method and its 95% interval, by a delete-a-group jackknife of the logarithm."""
    if baseline is method:
        return 1.0, (1.0, 1.0)
    values = [baseline.variance(each) / method.variance(each) for each in replicates]
    logs = np.log(np.maximum(values, 1e-12))
    count = len(logs) - 1
    error = math.sqrt((count - 1) / count * float(np.sum((logs[1:] - logs[1:].mean()) ** 2)))
    half = _student_quantile(0.975, count - 1) * error
    return values[0], (math.exp(logs[0] - half), math.exp(logs[0] + half))


def _student_quantile(probability: float, degrees: int) -> float:
    from scipy.stats import t as student_t

    return float(student_t.ppf(probability, degrees))


def write(report: Report, folder: Path) -> None:
    """Write report.json, report.md and the figures into a folder that is not published yet."""
    values = {
        **report.provenance,
        "decomposition": {
            **{name: each.value for name, each in report.decomposition.items()},
            "intervals": {name: [each.low, each.high] for name, each in report.decomposition.items()},
        },
        "gradient_decomposition": report.gradient_decomposition,
        "curves": report.curves,
        "densities": {name: density.to_state() for name, density in report.densities.items()},
        "methods": {name: asdict(result) for name, result in report.methods.items()},
    }
    (folder / "report.json").write_text(json.dumps(values, indent=1))
    (folder / "report.md").write_text(markdown(report))
    save_figure(ratio_figure(report), folder / "ratios.png")
    save_figure(curve_figure(report), folder / "curves.png")


HEADINGS = ("method", "loss", "interval", "gradient", "interval")


def _cells(name: str, result: MethodResult) -> tuple[str, ...]:
    def span(interval: tuple[float, float]) -> str:
        return f"{interval[0]:.2f} to {interval[1]:.2f}"

    mark = "" if result.unbiased else " (another objective)"
    return (
        name + mark,
        f"{result.loss_ratio:.2f}",
        span(result.loss_interval),
        f"{result.grad_ratio:.2f}",
        span(result.grad_interval),
    )


def ratio_table(report: Report) -> Table:
    """The terminal's table: standard's variance over each method's, at equal rows."""
    shown = Table(title="variance of standard over the method's, at equal rows", title_justify="left")
    for place, heading in enumerate(HEADINGS):
        shown.add_column(heading, justify="right" if place else "left")
    for name, result in report.methods.items():
        shown.add_row(*_cells(name, result))
    return shown


def decomposition_line(report: Report) -> str:
    """A, B and C in one line."""
    found = report.decomposition
    shares = ", ".join(
        f"{name} ({what}) {found[name].value:.4g} [{found[name].low:.4g}, {found[name].high:.4g}]"
        for name, what in (("A", "mask"), ("B", "t"), ("C", "data"))
    )
    total = found["total"]
    return (
        f"variance of one draw's loss: {shares}; sum {found['sum'].value:.4g}, "
        f"measured {total.value:.4g} [{total.low:.4g}, {total.high:.4g}]"
    )


def markdown(report: Report) -> str:
    """report.md."""
    provenance = report.provenance
    gradient_total = sum(report.gradient_decomposition.values())
    shares = ", ".join(
        f"{name} {value / gradient_total:.0%}" for name, value in report.gradient_decomposition.items()
    )
    lines = [
        f"# Variance of {provenance['checkpoint']} on {provenance['data']}",
        "",
        f"{provenance['samples']:,} samples, {provenance['rows']:,} forward rows, "
        f"{provenance['seconds']:.0f} s on {provenance['ranks']} ranks. Gradients of "
        f"{provenance['num_parameters']:,} parameters ({provenance['parameters'] or 'all'}). Batches of "
        f"{provenance['batch_size']} samples, two rows each.",
        "",
        decomposition_line(report) + ".",
        f"Of the trace of the gradient's covariance: {shares}.",
        "",
        "Variance of standard (two independent draws a sample) over the method's; above 1 is better:",
        "",
        "| " + " | ".join(HEADINGS) + " |",
        "|---|" + "---:|" * (len(HEADINGS) - 1),
        *("| " + " | ".join(_cells(name, result)) + " |" for name, result in report.methods.items()),
        "",
        "![ratios](ratios.png)",
        "![curves](curves.png)",
    ]
    return "\n".join(lines) + "\n"


def ratio_figure(report: Report) -> "Figure":
    """Ratios for loss and gradient, with their intervals."""
    figure = new_figure(7, 0.32 * len(report.methods) + 1.2)
    axes = figure.subplots()
    places = np.arange(len(report.methods))[::-1]
    for offset, (kind, color) in enumerate((("loss", "C0"), ("grad", "C1"))):
        centres = np.array([getattr(result, f"{kind}_ratio") for result in report.methods.values()])
        spans = np.array([getattr(result, f"{kind}_interval") for result in report.methods.values()])
        errors = np.abs(spans.T - centres)
        axes.errorbar(
            centres,
            places + 0.12 - 0.24 * offset,
            xerr=errors,
            fmt="o",
            color=color,
            markersize=4,
            label=kind,
        )
    axes.axvline(1, color="0.6", linestyle=":")
    axes.set_yticks(places, list(report.methods))
    axes.set_xlabel("variance of standard over the method's")
    axes.legend()
    return figure


def curve_figure(report: Report) -> "Figure":
    """Square roots of the second moments of loss and gradient over t, and every p(t), as densities."""
    figure = new_figure(9)
    left, right = figure.subplots(1, 2)
    widths = np.diff(report.edges)
    for name, label in (
        ("second_moment", "loss"),
        ("grad_second_moment", "gradient"),
        ("grad_proxy", "logit gradient"),
    ):
        root = np.sqrt(report.curves[name])
        left.stairs(root / np.sum(root * widths), report.edges, baseline=None, label=label)
    left.set(xlabel="t", title="sqrt of the second moment, scaled", xlim=(0, 1), yscale="log")
    for name, density in report.densities.items():
        right.stairs(density.density, density.edges, baseline=None, label=name)
    right.set(xlabel="t", title="p(t) that a probe fits", xlim=(0, 1), yscale="log")
    for axes in (left, right):
        axes.legend(fontsize=8)
    return figure
