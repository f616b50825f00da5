"""Masks by their number of tokens: closed forms of weights, laws of exact counts, and variances."""

from itertools import pairwise

import numpy as np
import pytest
from diffusion.enumeration import EPS, SKEWED, make_noise
from numpy.polynomial.legendre import leggauss
from scipy.stats import binom, norm

from mdmscale.config.diffusion import DiffusionSection
from mdmscale.diffusion.counts import count_probability, count_weight, objective_weight
from mdmscale.diffusion.density import DensityTable
from mdmscale.diffusion.exact_counts import counts_at, exact_weight, spread
from mdmscale.diffusion.levels import Levels
from mdmscale.diffusion.loss_weight import ELBO, LossWeight
from mdmscale.diffusion.noise import Noise, noise_sample
from mdmscale.diffusion.p_pots import expected_gain
from mdmscale.diffusion.sample import Sample

UNIFORM = DensityTable.uniform()


def sample_of(n: int) -> Sample:
    """n eligible tokens after two others."""
    return Sample(np.arange(n + 2), np.arange(n + 2) >= 2)


@pytest.mark.parametrize("n", [1, 4, 12, 128, 4096])
@pytest.mark.parametrize("eps", [1e-9, 1e-3, 0.5])
def test_the_objective_s_weight_of_a_count_is_the_binomial_formula(n: int, eps: float) -> None:
    counts = np.unique(np.linspace(1, n, 9).astype(int))
    expected = binom.cdf(counts - 1, n, eps) / (counts * (1 - eps))
    found = [objective_weight(int(count), n, ELBO, eps) for count in counts]
    assert found == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("density", [UNIFORM, SKEWED])
def test_counts_have_the_binomial_mixture_s_probabilities(density: DensityTable) -> None:
    n = 30
    probabilities = [count_probability(count, n, density, EPS) for count in range(n + 1)]
    assert sum(probabilities) == pytest.approx(1, rel=1e-12)
    grid = (np.arange(20_000) + 0.5) / 20_000
    rates = (1 - EPS) * density.draw(grid)[0] + EPS
    for count in (0, 1, 7, n):
        assert probabilities[count] == pytest.approx(binom.pmf(count, n, rates).mean(), rel=1e-4)


def test_count_weights_under_uniform_t_tend_to_their_limit() -> None:
    """(n + 1) / (n l), whatever t drew the mask. A mask without a token weighs nothing."""
    noise, rng, n = Noise(DiffusionSection(eps=1e-12)), np.random.default_rng(0), 6
    seen = set()
    for u in rng.random(60):
        noised = noise_sample(sample_of(n), Levels(np.array([u])), rng.random(n + 2), noise)
        count = int(noised.masks.sum())
        seen.add(count)
        assert noised.weights[noised.masks] == pytest.approx((n + 1) / (n * max(count, 1)), rel=1e-9)
    assert {0, 1, n} <= seen


@pytest.mark.parametrize("n", [1, 2, 4096, 100_000])
@pytest.mark.parametrize("density", [UNIFORM, SKEWED])
def test_weights_stay_finite_and_right_in_long_and_tiny_samples(n: int, density: DensityTable) -> None:
    """For long samples the weight A_l / P_l tends to 1 / (r p) with r = l / n."""
    for count in {max(1, int(2 * EPS * n)), n // 2 + 1, n}:
        weight = count_weight(count, n, ELBO, density, EPS)
        assert np.isfinite(weight) and weight > 0
        assert np.isfinite(exact_weight(count, n, Levels.at(0.5), EPS))
    if n == 100_000:
        t = 0.6  # in SKEWED's cell of the least density
        limit = 1 / (t * density.density[np.searchsorted(density.edges, t) - 1])
        assert count_weight(int(t * n), n, ELBO, density, 1e-9) == pytest.approx(limit, rel=1e-3)


@pytest.mark.parametrize("name", ["window", "bell", "uniform"])
def test_a_far_count_of_an_exact_window_weighs_next_to_nothing(name: str) -> None:
    """Differences of nearly equal distribution functions leave no weight of consequence, nor a NaN."""
    section = DiffusionSection(loss_weight=name, masking="exact")  # type: ignore[arg-type]
    density = DensityTable.from_weights(np.array([0.0, 0.3, 0.8, 1.0]), np.array([0.0, 1.0, 0.0]), 0.05)
    weights = np.array(
        [
            exact_weight(count, 4096, Levels(np.array([0.5]), density, section.initial_loss_weight), EPS)
            for count in (1, 40, 2048, 4000, 4096)
        ]
    )
    assert np.isfinite(weights).all() and weights.min() > -1e-9
    if name == "window":
        assert np.abs(weights[[0, 1, 3, 4]]).max() < 1e-6 * weights[2]


def test_loss_weights_have_the_integral_one() -> None:
    grid = (np.arange(100_000) + 0.5) / 100_000
    for loss_weight in (
        ELBO,
        LossWeight.uniform(EPS),
        LossWeight.window(0.3, 0.8),
        LossWeight.bell(0.5, 0.2),
        LossWeight.bell(0.0, 0.05),
        LossWeight.against(np.array([0, 0.1, 1]), np.array([5.0, 0.2])),
    ):
        assert loss_weight.at(grid, EPS).mean() == pytest.approx(1, rel=1e-4)
        again = LossWeight.from_state(loss_weight.to_state())
        assert np.array_equal(again.at(grid, EPS), loss_weight.at(grid, EPS))


def test_loss_weights_are_what_they_are_called() -> None:
    t = np.array([0.05, 0.299, 0.3, 0.55, 0.8, 0.801, 1.0])
    assert LossWeight.window(0.3, 0.8).at(t, EPS) == pytest.approx([0, 0, 2, 2, 2, 0, 0])
    rate = (1 - EPS) * t + EPS
    assert LossWeight.uniform(EPS).at(t, EPS) / rate == pytest.approx(2 / (1 + EPS))
    normal = norm.pdf(t, 0.4, 0.2) / (norm.cdf(1, 0.4, 0.2) - norm.cdf(0, 0.4, 0.2))
    assert LossWeight.bell(0.4, 0.2).at(t, EPS) == pytest.approx(normal, rel=0.15)
    against = LossWeight.against(np.array([0, 0.1, 1]), np.array([5.0, 0.2])).at(np.array([0.05, 0.5]), EPS)
    assert against[1] / against[0] == pytest.approx(25)


@pytest.mark.parametrize("num_rows", [1, 2, 3, 4, 7])
def test_rows_are_spread_over_strata_and_each_is_uniform_by_itself(num_rows: int) -> None:
    num = 840  # a multiple of every number of rows
    grid = (np.arange(num) + 0.5) / num
    spreads = np.array([spread(u, num_rows) for u in grid])  # [num, rows]
    assert spreads[:, 0] == pytest.approx(grid)
    for row in range(num_rows):
        assert np.sort(spreads[:, row]) == pytest.approx(grid), "each stratum is passed once, evenly"
    for each in spreads:
        assert sorted((each * num_rows).astype(int)) == list(range(num_rows))
    assert (spread(np.nextafter(1, 0), num_rows) < 1).all() and (spread(0.0, num_rows) < 1).all()


def test_two_rows_have_u_and_its_mirror_image() -> None:
    for u in np.random.default_rng(0).random(50):
        assert spread(u, 2) == pytest.approx([u, 1 - u])


@pytest.mark.parametrize("n", [1, 2, 5, 12])
def test_an_exact_pair_under_uniform_counts_trains_every_token(n: int) -> None:
    rng, noise = np.random.default_rng(n), make_noise(masking="exact_pair")
    for u in rng.random(40):
        noised = noise_sample(sample_of(n), Levels(np.array([u])), rng.random(n + 2), noise)
        assert noised.masks.sum() == n + 1
        assert noised.masks.any(axis=0).tolist() == sample_of(n).eligible.tolist()
        assert noised.t == pytest.approx([u, 1 - u])


@pytest.mark.parametrize("num_rows", [2, 3, 4])
def test_arcs_repeat_no_token_before_all_have_been_masked(num_rows: int) -> None:
    rng, noise, n = np.random.default_rng(0), make_noise(masking="exact", rows=num_rows), 7
    for u in rng.random(40):
        masks = noise_sample(sample_of(n), Levels(np.array([u]), SKEWED), rng.random(n + 2), noise).masks
        for rows in range(1, num_rows + 1):
            times = masks[:rows, 2:].sum(axis=0)
            assert times.max() - times.min() <= 1


@pytest.mark.parametrize("density", [UNIFORM, SKEWED])
def test_exact_counts_leave_no_row_empty_and_follow_the_density(density: DensityTable) -> None:
    rng, n, num = np.random.default_rng(0), 4, 2000
    noise = make_noise(masking="exact")
    counts = np.zeros(n + 1)
    for u in (np.arange(num) + 0.5) / num:
        masks = noise_sample(sample_of(n), Levels(np.array([u]), density), rng.random(n + 2), noise).masks
        counts[masks.sum()] += 1
    assert counts / num == pytest.approx([0, *np.diff(density.distribution(np.arange(n + 1) / n))], abs=2e-3)
    for edge in (0.0, np.nextafter(1, 0)):
        assert counts_at(np.array([edge]), n).tolist() == [1 if edge == 0 else n]


def test_a_sample_without_an_eligible_token_has_no_mask() -> None:
    for masking in ("bernoulli", "exact", "exact_pair", "independent", "complement"):
        noise = make_noise(masking=masking)
        levels = Levels.at(0.5, noise.corruption.num_t(3))
        nothing = Sample(np.arange(3), np.zeros(3, dtype=bool))
        noised = noise_sample(nothing, levels, np.zeros((noise.corruption.num_uniforms, 3)), noise)
        assert not noised.masks.any() and not noised.weights.any()


def pieces(density: DensityTable, loss_weight: LossWeight) -> tuple[np.ndarray, np.ndarray]:
    """Nodes in t of a quadrature over [0, 1], and their weights."""
    places, weights = leggauss(40)
    edges = np.unique([0, 1, *density.edges, *loss_weight.edges])
    t = [low + (high - low) * (places + 1) / 2 for low, high in pairwise(edges)]
    return np.concatenate(t), np.concatenate([weights / 2 * width for width in np.diff(edges)])


@pytest.mark.parametrize("seed", range(25))
def test_count_weights_never_have_more_variance_than_rate_weights(seed: int) -> None:
    """For every count, E[W^2 | l] P_l of the rate weights W is at least that of their mean: the count weight.

    So it holds for one row, and for independent rows, whatever the cross-entropies are.
    """
    rng, eps = np.random.default_rng(seed), 0.05  # 1 / r^2 is then integrated well
    n, cells = int(rng.integers(1, 40)), int(rng.integers(2, 9))
    edges = np.concatenate([[0], np.sort(rng.random(cells - 1)), [1]])
    density = DensityTable.from_weights(edges, rng.random(cells) ** 3, 0.05)
    low = 0.4 * rng.random()
    loss_weights = (ELBO, LossWeight.uniform(eps), LossWeight.window(low, low + 0.5))
    loss_weight = loss_weights[seed % 3]
    t, dt = pieces(density, loss_weight)
    p = density.density[np.searchsorted(density.edges, t, side="right") - 1]
    rate = (1 - eps) * t + eps
    by_rate = loss_weight.at(t, eps) / (rate * p)  # times 1 / n
    for count in range(1, n + 1):
        mass = dt * p * binom.pmf(count, n, rate)
        weight = count_weight(count, n, loss_weight, density, eps)
        assert mass @ by_rate == pytest.approx(mass.sum() * weight, rel=1e-9), "the same expectation"
        assert mass.sum() * weight**2 <= mass @ by_rate**2 * (1 + 1e-9)


# Second moment of the gradient against standard, for orthogonal token gradients of norm 1.
TABLE = {4: (3.3, 3.6), 12: (2.2, 2.6), 128: (1.33, 1.99)}


def standard(n: int) -> float:
    """int E[l] / (n r)^2 dt."""
    return float(np.log(1 / EPS) / (1 - EPS) / n)


def exact(n: int, density: DensityTable) -> float:
    """sum_l q_l (a_l / (n q_l))^2 l."""
    total = 0.0
    for count in range(1, n + 1):
        weight = exact_weight(count, n, Levels(np.array([0.5]), density), EPS)
        total += objective_weight(count, n, ELBO, EPS) * weight * count / n**2
    return total


@pytest.mark.parametrize("n", TABLE)
def test_exact_counts_gain_what_they_should_for_orthogonal_gradients(n: int) -> None:
    counts = np.arange(1, n + 1)
    best = [objective_weight(int(count), n, ELBO, EPS) * count**0.5 for count in counts]
    density = DensityTable.from_weights(np.arange(n + 1) / n, np.array(best), 0.0)
    gains = standard(n) / exact(n, UNIFORM), standard(n) / exact(n, density)
    assert gains == pytest.approx(TABLE[n], abs=0.05)
    for other in (0.3, 0.7):
        tilted = DensityTable.from_weights(np.arange(n + 1) / n, np.array(best) * counts**other, 0.0)
        assert exact(n, tilted) > exact(n, density)


def test_the_best_p_gains_less_than_exact_counts() -> None:
    """h = 1 / (n r), so the best p is proportional to its root."""
    edges = (np.geomspace(EPS, 1, 400) - EPS) / (1 - EPS)
    rates = (1 - EPS) * edges + EPS
    h = np.diff(np.log(rates)) / np.diff(rates)
    gain = expected_gain(h, edges, DensityTable.from_weights(edges, np.sqrt(h), 0.0))
    assert gain == pytest.approx(1.84, abs=0.005)
