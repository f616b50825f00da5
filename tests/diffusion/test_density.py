import numpy as np
import pytest

from mdmscale.diffusion.density import DensityTable

EDGES = np.array([0.0, 0.005, 0.1, 0.5, 1.0])


def skewed(defensive: float = 0.05) -> DensityTable:
    return DensityTable.from_weights(EDGES, np.array([40.0, 3.0, 0.0, 1.0]), defensive)


def test_integrates_to_one_and_bounds_the_weights() -> None:
    table = skewed(defensive=0.05)
    assert np.sum(table.density * np.diff(EDGES)) == pytest.approx(1, abs=1e-12)
    weights = [table.draw(u)[1] for u in np.linspace(0, 1, 1001, endpoint=False)]
    assert max(weights) <= 1 / 0.05
    assert max(weights) == pytest.approx(1 / 0.05), "the cell of weight 0 keeps the defensive share"


def test_inverse_is_exact() -> None:
    table = skewed()
    u = np.linspace(0, 1, 2000, endpoint=False)
    t = np.array([table.draw(value)[0] for value in u])
    cumulative = np.interp(t, EDGES, np.concatenate([[0], np.cumsum(table.density * np.diff(EDGES))]))
    assert np.abs(cumulative - u).max() < 1e-12


def test_weight_is_that_of_the_cell_sampled() -> None:
    table = skewed()
    for u in np.linspace(0, 1, 997, endpoint=False):
        t, weight = table.draw(u)
        cell = min(np.searchsorted(EDGES, t, side="right") - 1, 3)
        assert weight == 1 / table.density[cell]


def test_no_u_below_one_leaves_the_unit_interval() -> None:
    for table in (skewed(), DensityTable.uniform(), DensityTable.from_weights(EDGES, np.ones(4) / 3, 0.05)):
        t, weight = table.draw(np.nextafter(1, 0))
        assert 0 <= t <= 1
        assert np.isfinite(weight)


def test_state_survives_json_bit_for_bit() -> None:
    import json

    table = DensityTable.from_weights(np.linspace(0, 1, 8), np.random.default_rng(0).random(7), 0.05)
    again = DensityTable.from_state(json.loads(json.dumps(table.to_state())))
    assert np.array_equal(table.edges, again.edges)
    assert np.array_equal(table.density, again.density)


def test_mean_weights_are_the_means_over_other_cells() -> None:
    table, edges = skewed(), np.array([0.0, 0.003, 0.3, 0.6, 1.0])
    grid = (np.arange(200_000) + 0.5) / 200_000
    weights = 1 / table.density[np.searchsorted(table.edges, grid, side="right") - 1]
    for cell, mean in enumerate(table.mean_weights(edges)):
        inside = (grid >= edges[cell]) & (grid < edges[cell + 1])
        assert mean == pytest.approx(weights[inside].mean(), rel=1e-3)
