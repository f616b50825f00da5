"""Figures of a run, drawn without a display. matplotlib is imported only when a figure is drawn."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mdmscale.diffusion.density import DensityTable
from mdmscale.system.files import written_file
from mdmscale.training.metrics import Series

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float = 6, height: float = 3.6) -> "Figure":
    """An empty figure; width and height are in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def p_pots_figure(edges: np.ndarray, moment: np.ndarray, density: DensityTable, target: str) -> "Figure":
    """The measured sqrt(h(t)), scaled to a density, and the p(t) fitted to it. `moment` is h(t) [cells]."""
    figure = new_figure()
    axes = figure.subplots()
    usable = np.isfinite(moment) & (moment > 0)
    if usable.any():
        root, widths = np.sqrt(moment[usable]), np.diff(edges)[usable]
        scaled = root * widths.sum() / np.sum(root * widths)
        middles = (edges[:-1] + edges[1:])[usable] / 2
        axes.plot(middles, scaled, "o", markersize=4, label=f"measured, target {target}")
    axes.stairs(
        density.density, density.edges, baseline=None, color="C1", linewidth=2, label="p(t), sampled from"
    )
    axes.axhline(1, color="0.6", linestyle=":", label="uniform")
    axes.set(xlabel="t", ylabel="density", xlim=(0, 1), ylim=(0, None))
    axes.legend()
    return figure


LOSSES = ("loss", "loss_controlled", "eval_loss", "eval_loss_ema")  # the metrics that `training_figure` shows
MOST_POINTS = 5000  # of a curve: more than a figure has pixels


def training_figure(losses: dict[str, Series]) -> "Figure":
    """The controlled training loss and the held-out loss over steps, with each step's own loss behind them.

    The axis follows the curves. A step's loss depends on the t that it draws, so single ones may lie outside.
    """
    figure = new_figure()
    axes = figure.subplots()
    axes.plot(*_thinned(losses["loss"]), color="0.6", alpha=0.35, linewidth=0.5, label="training, each step")
    is_controlled = len(losses["loss_controlled"].steps) > 0
    what = "training, controlled" if is_controlled else "training"
    curve = losses["loss_controlled" if is_controlled else "loss"]
    window = max(1, len(curve.steps) // 50)
    smooth = Series(curve.steps[window - 1 :], _moving_mean(curve.values, window))
    axes.plot(*_thinned(smooth), color="C0", label=f"{what}, mean of {window}")
    shown = [smooth.values]
    for name, color, label in (("eval_loss", "C1", "held out"), ("eval_loss_ema", "C2", "held out, average")):
        if len(losses[name].steps):
            axes.plot(*_thinned(losses[name]), "o-", color=color, markersize=3, label=label)
            shown.append(losses[name].values)
    values = np.concatenate(shown)
    if len(values):  # none if every step was skipped
        margin = 0.1 * np.ptp(values) or 0.1
        axes.set_ylim(values.min() - margin, values.max() + margin)
    axes.set(xlabel="step", ylabel="loss, nats a token")
    axes.legend()
    return figure


def _moving_mean(values: np.ndarray, window: int) -> np.ndarray:
    """The means of `window` consecutive values, float64 [values - window + 1], in one pass."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return (sums[window:] - sums[:-window]) / window


def _thinned(series: Series) -> Series:
    """At most MOST_POINTS of the points of a series, evenly spread."""
    stride = -(-len(series.steps) // MOST_POINTS) or 1
    return Series(series.steps[::stride], series.values[::stride])


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a figure in the format of the path's suffix (PNG if it has none). Create the parent folder."""
    path = path if path.suffix else path.with_suffix(".png")
    with written_file(path, durable=False) as unfinished:
        figure.savefig(unfinished, dpi=120)
