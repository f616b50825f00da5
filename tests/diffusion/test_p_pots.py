import logging

import numpy as np
import pytest

from mdmscale.config import PPotsSection
from mdmscale.diffusion.p_pots import ProbeStatistics, epr_weight, fit_density, fit_epr, probe_edges

MIDPOINTS = (np.arange(29) + 0.5) / 29


def divergence(p: np.ndarray, q: np.ndarray) -> float:
    p, q = p / p.sum(), q / q.sum()
    return float(np.sum(p * np.log(p / q)))


@pytest.mark.parametrize(
    "parameters", [[1, 1.5, 2, 0.5, 3, 2, 5], [0.3, 2.5, 1, 2, 1.5, 0.1, 3], [2, 0.1, 4, 0.1, 1, 5, 12]]
)
def test_epr_recovers_a_density_from_noisy_statistics(parameters: list[float]) -> None:
    truth = epr_weight(np.array(parameters), MIDPOINTS)
    noisy = truth * np.exp(0.03 * np.random.default_rng(0).normal(size=29))
    assert divergence(truth, epr_weight(fit_epr(MIDPOINTS, noisy / noisy.mean()), MIDPOINTS)) < 1e-3


def constant_statistics(t: np.ndarray, losses: np.ndarray, squared_norms: np.ndarray) -> ProbeStatistics:
    """Statistics whose draws are all equal at each t."""
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
    density = fit_density(constant_statistics(t, losses, squared_norms), options)
    w = losses if root == "loss" else np.sqrt(squared_norms)
    expected = 0.95 * w / np.sum(w * np.diff(edges)) + 0.05
    assert density.density == pytest.approx(expected, rel=1e-3)


def test_paper_and_loss_targets_differ_by_the_spread_over_samples() -> None:
    """h_loss - h_paper = Var_x g, for the paper averages g over x before it squares."""
    rng = np.random.default_rng(0)
    g = rng.random((200, 5))
    losses = g[:, :, None] + 0.1 * rng.normal(size=(200, 5, 400))
    statistics = ProbeStatistics(np.linspace(0.1, 0.9, 5), losses, losses**2)
    difference = statistics.second_moment("loss") - statistics.second_moment("paper")
    assert difference == pytest.approx(g.var(axis=0), rel=0.05)


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_unusable_statistics_warn_and_stay_uniform(value: float, caplog: pytest.LogCaptureFixture) -> None:
    losses = np.ones((2, 29, 3))
    losses[:, :20] = value
    with caplog.at_level(logging.WARNING):
        density = fit_density(ProbeStatistics(MIDPOINTS, losses, losses), PPotsSection(target="loss"))
    assert density.density.tolist() == [1.0]
    assert "20 of 29" in caplog.text


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_a_few_unusable_statistics_are_interpolated(value: float, caplog: pytest.LogCaptureFixture) -> None:
    """Near t = 0 a short response may have nothing masked in any draw."""
    options = PPotsSection(target="loss", fit="table")
    edges = probe_edges(options)
    t = (edges[:-1] + edges[1:]) / 2
    statistics = constant_statistics(t, 1 + t, t)
    whole = fit_density(statistics, options)
    statistics.losses[:, 5] = value
    with caplog.at_level(logging.WARNING):
        density = fit_density(statistics, options)
    assert density.density == pytest.approx(whole.density, rel=1e-2)
    assert "1 of 16" in caplog.text


def test_fit_hides_rounding_of_the_statistics() -> None:
    """Sums in another order on another number of ranks may not change t."""
    losses = np.random.default_rng(1).random((10, 29, 10)) + 1
    statistics = [ProbeStatistics(MIDPOINTS, losses * factor, losses) for factor in (1, 1 + 1e-7)]
    first, second = (fit_density(each, PPotsSection()) for each in statistics)
    assert np.array_equal(first.density, second.density)
