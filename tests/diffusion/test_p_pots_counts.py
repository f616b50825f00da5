"""P-POTS where masks are weighed by their counts, on gradients that are known for every count."""

import numpy as np
import pytest
from diffusion.enumeration import EPS, make_noise
from numpy.polynomial.legendre import leggauss
from scipy.stats import binom

from mdmscale.config.diffusion import PPotsSection
from mdmscale.diffusion.counts import count_probability, count_weight, objective_weight
from mdmscale.diffusion.density import DensityTable
from mdmscale.diffusion.levels import Levels
from mdmscale.diffusion.loss_weight import ELBO
from mdmscale.diffusion.noise import noise_sample
from mdmscale.diffusion.p_pots import CellSums, ProbeStatistics, fit_density, probe_edges
from mdmscale.diffusion.sample import Sample

N = 10  # counts change at edges of the table's cells
COUNTS = np.arange(1, N + 1)
SAMPLE = Sample(np.arange(N), np.ones(N, dtype=bool))
OPTIONS = PPotsSection(fit="table", target="gradient", defensive=1e-9)
EDGES = probe_edges(OPTIONS)
MIDDLES = (EDGES[:-1] + EDGES[1:]) / 2
# E ||sum_S grad CE||^2 of l tokens, between orthogonal and equal gradients, and easier among many masks.
NORMS = COUNTS**1.4 * (1 + 2 / COUNTS)
OBJECTIVE = np.array([objective_weight(int(count), N, ELBO, EPS) for count in COUNTS])  # a_l
RANDOM = DensityTable.from_weights(EDGES, np.random.default_rng(1).random(len(EDGES) - 1), 0.1)


def plain_norms(density: DensityTable) -> np.ndarray:
    """||grad||^2 of an exact mask at the middle of each cell, without its 1 / p, as training collects it."""
    noise, norms = make_noise(masking="exact"), []
    for u in density.distribution(MIDDLES):
        noised = noise_sample(SAMPLE, Levels(np.array([u]), density), np.linspace(0, 0.9, N), noise)
        weight, count = float(noised.weights.max()), int(noised.masks.sum())
        norms.append((weight / float(noised.importance_weights[0])) ** 2 * NORMS[count - 1])
    return np.array(norms)


def refit(h: np.ndarray) -> DensityTable:
    sums = CellSums(np.stack([np.ones_like(h), h, h, h]))
    return fit_density(sums.second_moment("gradient"), EDGES, OPTIONS, masks_are_empty=False)


def shares(density: DensityTable) -> np.ndarray:
    """q_l over the best q, up to a factor."""
    return np.diff(density.distribution(np.arange(N + 1) / N)) / (OBJECTIVE * np.sqrt(NORMS))


def test_a_probe_of_exact_counts_finds_the_best_counts_at_once() -> None:
    """q_l proportional to a_l sqrt(E ||grad||^2)."""
    norms = np.broadcast_to(plain_norms(DensityTable.uniform())[None, :, None], (3, len(MIDDLES), 2))
    moment = ProbeStatistics(MIDDLES, norms, norms).second_moment("gradient")
    density = fit_density(moment, EDGES, OPTIONS, masks_are_empty=False)
    assert shares(density) / shares(density)[0] == pytest.approx(np.ones(N), rel=1e-3)
    assert np.ptp(density.density) > 0.5, "a uniform density would prove nothing"


def test_a_refit_of_exact_counts_finds_them_too_and_stays_there() -> None:
    """Whatever density training drew from, though it differs within a count."""
    first = refit(plain_norms(RANDOM))
    assert shares(first) / shares(first)[0] == pytest.approx(np.ones(N), rel=1e-3)
    second = refit(plain_norms(first))
    assert second.density == pytest.approx(first.density, rel=1e-3)


def bernoulli_norms(density: DensityTable) -> np.ndarray:
    """E ||grad||^2 of Bernoulli masks with count weights in each cell of t, without the weight 1 / p."""
    places, node_weights = leggauss(12)
    t = EDGES[:-1, None] + np.diff(EDGES)[:, None] * (places + 1) / 2  # [cells, nodes]
    masses = binom.pmf(COUNTS, N, ((1 - EPS) * t + EPS)[..., None])  # [cells, nodes, counts]
    weights = np.array([count_weight(int(count), N, ELBO, density, EPS) for count in COUNTS]) / N
    return (masses @ (weights**2 * NORMS)) @ (node_weights / 2) * density.density**2


def bernoulli_moment(density: DensityTable) -> float:
    """sum_l a_l^2 E ||grad||^2 / P_l / n^2."""
    probabilities = [count_probability(int(count), N, density, EPS) for count in COUNTS]
    return float(np.sum(OBJECTIVE**2 * NORMS / probabilities) / N**2)


@pytest.mark.parametrize("start", [DensityTable(EDGES, np.ones(len(EDGES) - 1)), RANDOM])
def test_refits_of_bernoulli_masks_with_count_weights_approach_the_best_p(start: DensityTable) -> None:
    """The second moment is convex in p, and falls with every refit.

    Where p is best, no cell has a gradient above the mean: max_j g_j bounds how far it is from the optimum.
    """
    density, moments = start, [bernoulli_moment(start)]
    for _ in range(60):
        density = refit(bernoulli_norms(density))
        moments.append(bernoulli_moment(density))
    assert (np.diff(moments) < 1e-4 * moments[0]).all()
    assert moments[-1] < 0.9 * moments[0]
    gradient = bernoulli_norms(density) / density.density**2
    lower_bound = 2 * moments[-1] - gradient.max()  # of a convex function by its tangent at `density`
    assert moments[-1] - lower_bound < 0.1 * (moments[0] - lower_bound)
