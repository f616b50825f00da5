"""Figures of a run, drawn without a display. matplotlib is imported only when a figure is drawn."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mdmscale.diffusion.density import DensityTable
from mdmscale.system.files import written_file

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


def training_figure(records: list[dict[str, Any]]) -> "Figure":
    """The controlled training loss and the held-out loss over steps, with each step's own loss behind them.

    The axis follows the curves. A step's loss depends on the t that it draws, so single ones may lie outside.
    """
    figure = new_figure()
    axes = figure.subplots()
    steps, losses = _series(records, "loss")
    axes.plot(steps, losses, color="0.6", alpha=0.35, linewidth=0.5, label="training, each step")
    is_controlled = any("loss_controlled" in record for record in records)
    what = "training, controlled" if is_controlled else "training"
    steps, losses = _series(records, "loss_controlled" if is_controlled else "loss")
    window = max(1, len(losses) // 50)
    smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
    axes.plot(steps[window - 1 :], smooth, color="C0", label=f"{what}, mean of {window}")
    shown = [smooth]
    for name, color, label in (("eval_loss", "C1", "held out"), ("eval_loss_ema", "C2", "held out, average")):
        steps, losses = _series(records, name)
        if len(steps):
            axes.plot(steps, losses, "o-", color=color, markersize=3, label=label)
            shown.append(losses)
    low, high = min(values.min() for values in shown), max(values.max() for values in shown)
    margin = 0.1 * (high - low) or 0.1
    axes.set(xlabel="step", ylabel="loss, nats a token", ylim=(low - margin, high + margin))
    axes.legend()
    return figure


def _series(records: list[dict[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """The steps whose records have a value of this name, and the values."""
    pairs = [(record["step"], record[name]) for record in records if name in record]
    return np.array([step for step, _ in pairs]), np.array([value for _, value in pairs], dtype=float)


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a figure in the format of the path's suffix (PNG if it has none). Create the parent folder."""
    path = path if path.suffix else path.with_suffix(".png")
    with written_file(path, durable=False) as unfinished:
        figure.savefig(unfinished, dpi=120)
