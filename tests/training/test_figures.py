"""Figures: the files that they write, and that matplotlib is imported only when needed."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mdmscale.diffusion.density import DensityTable
from mdmscale.training.figures import LOSSES, p_pots_figure, save_figure, training_figure
from mdmscale.training.metrics import Series

NONE = dict.fromkeys(LOSSES, Series(np.array([]), np.array([])))


def test_losses_are_drawn(tmp_path: Path) -> None:
    steps = np.arange(1, 9)
    losses = {**NONE, "loss": Series(steps, 1 / steps), "eval_loss": Series(steps, 2 / steps)}
    save_figure(training_figure(losses), tmp_path / "figures" / "loss.png")
    assert (tmp_path / "figures" / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_the_steady_curve_decides_what_is_shown() -> None:
    """A step's own loss is noisy: it lies behind the controlled one, and does not stretch the axis."""
    noise, steps = np.random.default_rng(0).normal(size=9), np.arange(9)
    constant = {
        "loss_controlled": Series(steps, np.full(9, 4.0)),
        "eval_loss": Series(steps, np.full(9, 4.2)),
    }
    (axes,) = training_figure({**NONE, "loss": Series(steps, 4 + 3 * noise), **constant}).axes
    raw, controlled, held_out = axes.get_lines()
    assert raw.get_zorder() <= controlled.get_zorder() and len(raw.get_ydata()) == 9
    assert set(controlled.get_ydata()) == {4.0} and set(held_out.get_ydata()) == {4.2}
    assert axes.get_ylim() == pytest.approx((3.98, 4.22))


def test_a_million_steps_are_drawn_with_as_many_points_as_can_be_seen() -> None:
    steps = np.arange(1_000_000)
    losses = 4 + np.random.default_rng(0).normal(size=len(steps))
    (axes,) = training_figure({**NONE, "loss": Series(steps, losses)}).axes
    raw, smooth = axes.get_lines()
    assert len(raw.get_xdata()) == 5000 and raw.get_xdata()[-1] == 999_800
    window = 20_000
    assert smooth.get_label() == f"training, mean of {window}"
    last = int(smooth.get_xdata()[-1])
    assert smooth.get_ydata()[-1] == pytest.approx(losses[last - window + 1 : last + 1].mean())


def test_a_run_whose_steps_were_all_skipped_has_an_empty_figure() -> None:
    (axes,) = training_figure(NONE).axes
    assert all(len(line.get_xdata()) == 0 for line in axes.get_lines())


def test_a_fit_is_drawn_beside_what_was_measured(tmp_path: Path) -> None:
    edges = np.linspace(0, 1, 5)
    density = DensityTable(edges, np.array([0.4, 0.8, 1.2, 1.6]))
    figure = p_pots_figure(edges, np.array([np.nan, 1.0, 0.0, 4.0]), density, "loss")
    save_figure(figure, tmp_path / "p_pots.png")
    assert (tmp_path / "p_pots.png").read_bytes().startswith(b"\x89PNG")
    (points, _) = figure.axes[0].get_lines()
    assert list(points.get_xdata()) == [0.375, 0.875], "cells without a measurement have no point"


def test_matplotlib_is_imported_only_to_draw() -> None:
    code = (
        "import sys\n"
        "from mdmscale.analysis.planning import report\n"
        "from mdmscale.training import figures\n"
        "before = 'matplotlib' in sys.modules\n"
        "figures.new_figure()\n"
        "print(before, 'matplotlib' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False True\n"
