"""The report's figures: ratios with their intervals, and second moments over t."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from mdmscale.analysis.variance.estimates import Ratio
from mdmscale.diffusion.density import DensityTable
from mdmscale.training.figures import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def ratio_figure(ratios: Mapping[str, Mapping[str, Ratio]]) -> "Figure":
    """The ratios of each method for the gradient, raw and preconditioned, and for the loss."""
    figure = new_figure(7, 0.32 * len(ratios) + 1.2)
    axes = figure.subplots()
    places = np.arange(len(ratios))[::-1]
    for offset, measure, color in ((0.22, "gradient", "C1"), (0.0, "adam", "C2"), (-0.22, "loss", "C0")):
        found = [of_method[measure] for of_method in ratios.values()]
        centres = np.array([ratio.value for ratio in found])
        ends = np.array([[ratio.value - ratio.low, ratio.high - ratio.value] for ratio in found]).T
        label = {"adam": "gradient, preconditioned"}.get(measure, measure)
        axes.errorbar(
            centres,
            places + offset,
            xerr=np.maximum(ends, 0),
            fmt="o",
            color=color,
            markersize=3.5,
            label=label,
            alpha=0.4 if measure == "loss" else 1.0,
        )
    shown = [each[measure] for each in ratios.values() for measure in ("gradient", "adam")]
    axes.set_xscale("log")
    axes.set_xlim(
        max(0.8 * min(ratio.low for ratio in shown), 1 / 20),
        min(1.25 * max(ratio.high for ratio in shown), 50),
    )
    axes.axvline(1, color="0.6", linestyle=":")
    axes.set_yticks(places, list(ratios))
    axes.set_xlabel("variance of standard over the method's, at equal rows")
    low, high = axes.get_xlim()
    ticks = [tick for tick in (0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32) if low <= tick <= high]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    figure.legend(loc="outside upper center", ncols=3)
    return figure


def curve_figure(
    curves: Mapping[str, list[float | None]], edges: np.ndarray, densities: Mapping[str, DensityTable]
) -> "Figure":
    """Square roots of the second moments of loss and gradient over t, and every p(t), as densities."""
    figure = new_figure(9)
    left, right = figure.subplots(1, 2)
    widths = np.diff(edges)
    for name, label in (
        ("second_moment", "loss"),
        ("grad_second_moment", "gradient"),
        ("grad_proxy", "logit gradient"),
    ):
        root = np.sqrt(np.array(curves[name], dtype=float))
        left.stairs(root / np.nansum(root * widths), edges, baseline=None, label=label)
    left.set(xlabel="t", title="sqrt of the second moment, scaled", xlim=(0, 1), yscale="log")
    shown: set[bytes] = set()
    for name, density in densities.items():
        if density.density.tobytes() in shown:  # methods that are probed alike have one density
            continue
        shown.add(density.density.tobytes())
        right.stairs(density.density, density.edges, baseline=None, label=name)
    right.set(xlabel="t", title="p(t) that a probe fits", xlim=(0, 1), yscale="log")
    left.legend(fontsize=8)
    if densities:
        right.legend(fontsize=6)
    return figure
