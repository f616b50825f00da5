import logging

import numpy as np
import pytest

from mdmscale.config.diffusion import PPotsSection
from mdmscale.diffusion.density import DensityTable
from mdmscale.diffusion.epr import epr_weight, fit_epr
from mdmscale.diffusion.p_pots import (
    CellSums,
    ProbeStatistics,
    expected_gain,
    fit_density,
    probe_edges,
)

MIDPOINTS = (np.arange(29) + 0.5) / 29


def divergence(p: np.ndarray, q: np.ndarray) -> float:
    p, q = p / p.sum(), q / q.sum()
    return float(np.sum(p * np.log(p / q)))


@pytest.mark.parametrize(
    "parameters", [[1, 1.5, 2, 0.5, 3, 2, 5], [0.3, 2.5, 1, 2, 1.5, 0.1, 3], [2, 0.1, 4, 0.1, 1, 5, 12]]
)
def test_epr_recovers_a_density_from_noisy_statistics(parameters: list[float]) -> None:
    truth = epr_weight(np.array(parameters), MIDPOINTS)
    for seed in range(20):
        noisy = truth * np.exp(0.03 * np.random.default_rng(seed).normal(size=29))
        fitted = fit_epr(MIDPOINTS, noisy / noisy.mean(), seed)
        assert divergence(truth, epr_weight(fitted, MIDPOINTS)) < 1e-3, seed


def constant_statistics(t: np.ndarray, losses: np.ndarray, squared_norms: np.ndarray) -> ProbeStatistics:
    """Statistics whose draws at each t are all equal."""
    shape = (4, len(t), 3)
    return ProbeStatistics(
        t,
        np.broadcast_to(losses[:, None], shape).copy(),
        np.broadcast_to(squared_norms[:, None], shape).copy(),
    )


@pytest.mark.parametrize(("target", "root"), [("paper", "loss"), ("loss", "loss"), ("gradient", "norm")])
def test_table_follows_the_root_of_the_second_moment(target: str, root: str) -> None:
    options = PPotsSection(target=target, fit="table", defensive=0.05)
    edges = probe_edges(options)
    t = (edges[:-1] + edges[1:]) / 2
    losses, squared_norms = 1 + 2 * t, 1 / (t + 0.01)
    moment = constant_statistics(t, losses, squared_norms).second_moment(target)
    density = fit_density(moment, probe_edges(options), options)
    w = losses if root == "loss" else np.sqrt(squared_norms)
    expected = 0.95 * w / np.sum(w * np.diff(edges)) + 0.05
    assert density.density == pytest.approx(expected, rel=1e-3)


def test_paper_and_loss_targets_differ_by_the_spread_over_samples() -> None:
    """h_loss - h_paper = Var_x g, because the paper averages g over x before it squares."""
    rng = np.random.default_rng(0)
    g = rng.random((200, 5))
    losses = g[:, :, None] + 0.1 * rng.normal(size=(200, 5, 400))
    statistics = ProbeStatistics(np.linspace(0.1, 0.9, 5), losses, losses**2)
    difference = statistics.second_moment("loss") - statistics.second_moment("paper")
    assert difference == pytest.approx(g.var(axis=0), rel=0.05)


DEGENERATE = {
    "zeros": np.zeros(29),
    "one_cell": np.where(np.arange(29) == 4, 1.0, 0.0),
    "nan": np.full(29, np.nan),
    "infinite": np.full(29, np.inf),
    "mostly_nan": np.where(np.arange(29) < 20, np.nan, 1.0),
}


@pytest.mark.parametrize("fit", ["epr", "table"])
@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_statistics_warn_and_stay_uniform(
    name: str, fit: str, caplog: pytest.LogCaptureFixture
) -> None:
    options = PPotsSection(target="loss", fit=fit)
    moment = DEGENERATE[name][: len(probe_edges(options)) - 1]
    with caplog.at_level(logging.WARNING):
        density = fit_density(moment, probe_edges(options), options)
    assert density.density.tolist() == [1.0]
    assert "statistics are zero or not finite; t stays uniform" in caplog.text


@pytest.mark.parametrize("fit", ["epr", "table"])
@pytest.mark.parametrize("spike", [1e-30, 1e30])
def test_a_spike_gives_a_density_that_weighs_no_sample_beyond_its_bound(fit: str, spike: float) -> None:
    options = PPotsSection(fit=fit)
    moment = np.ones(len(probe_edges(options)) - 1)
    moment[3] = spike
    density = fit_density(moment, probe_edges(options), options)
    assert np.sum(density.density * np.diff(density.edges)) == pytest.approx(1)
    assert density.density.min() >= options.defensive


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_a_few_unusable_statistics_are_interpolated(value: float, caplog: pytest.LogCaptureFixture) -> None:
    """Near t = 0 it can happen that no draw masks any token of a short response."""
    options = PPotsSection(target="loss", fit="table")
    edges = probe_edges(options)
    moment = (1 + (edges[:-1] + edges[1:]) / 2) ** 2
    whole = fit_density(moment, probe_edges(options), options)
    moment[5] = value
    with caplog.at_level(logging.WARNING):
        density = fit_density(moment, probe_edges(options), options)
    assert density.density == pytest.approx(whole.density, rel=1e-2)
    assert "1 of 16" in caplog.text


def test_fit_hides_rounding_of_the_statistics() -> None:
    """Another number of ranks sums in another order, which must not change t."""
    moment = np.random.default_rng(1).random(29) + 1
    options = PPotsSection(fit="epr")
    first, second = (fit_density(moment * factor, probe_edges(options), options) for factor in (1, 1 + 1e-7))
    assert np.array_equal(first.density, second.density)


def test_p_follows_its_closed_form_where_cross_entropy_ignores_the_mask() -> None:
    """Then E[l^2 | t] = mean^2 + s (1 - r) / r. The fit is proportional to its root; the gain is known."""
    options = PPotsSection(target="loss", fit="table", defensive=1e-9)
    edges = probe_edges(options)
    rate = 0.999 * (edges[:-1] + edges[1:]) / 2 + 0.001
    h = 1.0 + 0.3 * (1 - rate) / rate
    widths = np.diff(edges)
    density = fit_density(h, edges, options)
    assert density.density == pytest.approx(np.sqrt(h) / np.sum(np.sqrt(h) * widths), rel=1e-3)
    gain = np.sum(h * widths) / np.sum(np.sqrt(h) * widths) ** 2
    assert gain > 1.05
    assert expected_gain(h, edges, density) == pytest.approx(gain, rel=1e-4)
    assert expected_gain(h, edges, DensityTable.uniform()) == pytest.approx(1)


def test_training_s_sums_give_the_same_moments_as_a_probe() -> None:
    rng = np.random.default_rng(0)
    losses, norms = rng.random((2, 5, 16, 8))
    statistics = ProbeStatistics(np.arange(16.0), losses, norms)
    sums = np.stack([np.full(16, 40.0), *(x.sum(axis=(0, 2)) for x in (losses, losses**2, norms))])
    for target in ("loss", "gradient"):
        assert CellSums(sums).second_moment(target) == pytest.approx(statistics.second_moment(target))
    sums[:, 3] = 0
    assert np.isnan(CellSums(sums).second_moment("loss")).tolist() == [place == 3 for place in range(16)]
