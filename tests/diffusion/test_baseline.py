"""The EMA control variate: same expectation, less variance, and an exact integral."""

import json

import numpy as np
import pytest

from mdmscale.diffusion.baseline import WARM_UP, EmaBaseline
from mdmscale.diffusion.density import DensityTable
from mdmscale.diffusion.levels import Levels
from mdmscale.diffusion.loss_weight import ELBO, LossWeight
from mdmscale.diffusion.p_pots import TABLE_EDGES

SKEWED = DensityTable.from_weights(np.array([0, 0.1, 0.5, 1.0]), np.array([3.0, 1.0, 2.0]), 0.05)


def simulate(
    density: DensityTable, steps: int, seed: int = 0, batch: int = 8, loss_weight: LossWeight = ELBO
) -> tuple[EmaBaseline, np.ndarray]:
    """Losses of a model with g(t) = 1 + 3 t^2 plus noise: (loss, controlled), float64 [steps, 2]."""
    rng = np.random.default_rng(seed)
    edges = np.unique([density.edges[0], *TABLE_EDGES[density.edges[0] < TABLE_EDGES]])
    baseline, num_cells = EmaBaseline(edges, decay=0.99), len(edges) - 1
    rows = []
    for _ in range(steps):
        levels = Levels(rng.random(batch), density, loss_weight)
        losses = loss_weight.at(levels.t, 0.0) * (1 + 3 * levels.t**2 + 0.2 * rng.normal(size=batch))
        cells = np.searchsorted(edges, levels.t, side="right") - 1
        counts = np.bincount(cells, minlength=num_cells).astype(float)
        sums = np.bincount(cells, losses, minlength=num_cells)
        loss = float(np.mean(levels.importance_weights * losses))
        value = float(np.mean(levels.importance_weights * baseline.values(levels.t)))
        rows.append((loss, baseline.observe(loss, value, counts, sums)))
    return baseline, np.array(rows)


@pytest.mark.parametrize("density", [DensityTable.uniform(), SKEWED], ids=["uniform", "p_pots"])
def test_same_mean_and_far_less_variance(density: DensityTable) -> None:
    _, rows = simulate(density, 3000)
    rows = rows[200:]
    plain, controlled = rows.T
    assert controlled.var() < plain.var() / 5
    error = controlled.std() / np.sqrt(len(rows))
    assert controlled.mean() == pytest.approx(2.0, abs=4 * error), "int 1 + 3 t^2"


def test_the_coefficient_is_estimated_and_waits_for_enough_steps() -> None:
    baseline, rows = simulate(DensityTable.uniform(), WARM_UP - 1)
    assert np.array_equal(rows[:, 0], rows[:, 1])
    assert baseline.coefficient == 0
    baseline, _ = simulate(DensityTable.uniform(), 2000)
    assert baseline.coefficient == pytest.approx(1, abs=0.1), "b(t) has learnt g(t) itself"


def test_averages_follow_the_cells_and_their_integral_is_exact() -> None:
    baseline, _ = simulate(DensityTable.uniform(), 3000)
    middles = (TABLE_EDGES[:-1] + TABLE_EDGES[1:]) / 2
    assert baseline.averages == pytest.approx(1 + 3 * middles**2, abs=0.2)
    grid = (np.arange(100_000) + 0.5) / 100_000
    for low, high in ((0.0, 1.0), (0.3, 0.8)):
        mean = baseline.values(low + (high - low) * grid).mean()
        assert baseline.integral(low, high) == pytest.approx((high - low) * mean, abs=1e-6)


@pytest.mark.parametrize("density", [DensityTable.uniform(0.5), DensityTable.uniform()])
def test_a_window_is_controlled_whether_t_is_drawn_within_it_alone_or_not(density: DensityTable) -> None:
    _, rows = simulate(density, 3000, loss_weight=LossWeight.window(0.5, 1.0))
    plain, controlled = rows[200:].T
    error = controlled.std() / np.sqrt(len(controlled))
    assert controlled.mean() == pytest.approx(1 + 3 * (1 - 0.125) / 3 / 0.5, abs=4 * error)
    assert controlled.var() < plain.var() / 3


def test_an_evaluation_is_rid_of_its_grid_s_error() -> None:
    """The mean of g over 3 midpoints is not its integral. The baseline corrects nearly all of the error."""
    baseline, _ = simulate(DensityTable.uniform(), 3000)
    grid = np.array([0.1, 0.2, 0.3])  # a lopsided grid, so that the error is large
    loss = float(np.mean(1 + 3 * grid**2))
    controlled = baseline.control(loss, float(baseline.values(grid).mean()))
    assert abs(controlled - 2) < abs(loss - 2) / 5


def test_state_survives_json_bit_for_bit_and_other_cells_are_left_alone() -> None:
    baseline, _ = simulate(DensityTable.uniform(), 50)
    state = json.loads(json.dumps(baseline.state_dict()))
    restored = EmaBaseline(TABLE_EDGES, decay=0.99)
    restored.load_state_dict(state)
    assert restored.state_dict() == baseline.state_dict()
    other = EmaBaseline(np.linspace(0, 1, 30), decay=0.99)
    other.load_state_dict(state)
    assert other.num_steps == 0 and not other.weights.any()
