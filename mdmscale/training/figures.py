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
    """Training loss, its running mean, and evaluation loss over steps."""
    figure = new_figure()
    axes = figure.subplots()
    steps = np.array([record["step"] for record in records])
    losses = np.array([record["loss"] for record in records])
    window = max(1, len(losses) // 50)
    axes.plot(steps, losses, color="C0", alpha=0.3, linewidth=0.8, label="training, each step")
    if len(losses) >= window:
        smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
        axes.plot(steps[window - 1 :], smooth, color="C0", label=f"training, mean of {window}")
    evaluated = [(record["step"], record["eval_loss"]) for record in records if "eval_loss" in record]
    if evaluated:
        axes.plot(*zip(*evaluated, strict=True), "o-", color="C1", markersize=3, label="held out")
    axes.set(xlabel="step", ylabel="loss, nats a token")
    axes.legend()
    return figure


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a figure in the format of the path's suffix (PNG if it has none). Create the parent folder."""
    path = path if path.suffix else path.with_suffix(".png")
    with written_file(path, durable=False) as unfinished:
        figure.savefig(unfinished, dpi=120)
