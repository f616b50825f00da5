"""Draws of rare masks are weighed so that means over draws are those of training.

The gradients of the tokens are orthogonal unit vectors. So the squared norm of a draw is the sum over
tokens of their squared weights, and its mean has a closed form.
"""

import math

import numpy as np
import pytest

from mdmscale.analysis.variance.draws import Estimator
from mdmscale.analysis.variance.methods import compared_methods
from mdmscale.config.diffusion import DiffusionSection
from mdmscale.diffusion.density import DensityTable
from mdmscale.diffusion.noise import Noise, noise_sample
from mdmscale.diffusion.sample import Sample
from mdmscale.diffusion.schedule import mask_rate
from mdmscale.diffusion.t_samplers import TSampler
from mdmscale.diffusion.uniforms import Stream, generator

N, EPS, DRAWS = 3, 1e-3, 1000
SKEWED = DensityTable.from_weights(np.array([0, 0.05, 0.3, 1.0]), np.array([4.0, 2.0, 1.0]), 0.05)
UNIFORM = DensityTable.uniform()
SAMPLE = Sample(np.arange(N + 1), np.arange(N + 1) < N)
GRID = np.concatenate([[0.0], np.geomspace(1e-7, 1, 20_001)])
T, WIDTHS = (GRID[1:] + GRID[:-1]) / 2, np.diff(GRID)


def expected(masking: str, density: DensityTable) -> float:
    """The mean squared norm: N times the mean of a token's squared weight."""
    r, other = mask_rate(T, EPS), mask_rate(1 - T, EPS)
    pair = np.where(r <= 0.5, (1 - 2 * r) / (2 * r), (2 * r - 1) * (1 - r) / (2 * r**2))
    at_t = {
        "bernoulli": 1 / r,
        "mirror": pair + 1,
        "complement": (1 / r + 1 / other + 2 * EPS / (r * other)) / 4,
    }
    if masking == "independent":  # two single rows, each with the mean 1 / N
        return expected("bernoulli", density) / 2 + 1 / (2 * N)
    p = density.density[np.searchsorted(density.edges, T, side="right") - 1]
    return float(np.sum(at_t[masking] / p * WIDTHS)) / N


def estimator_of(masking: str, density: DensityTable) -> Estimator:
    methods = [each for each in compared_methods(8) if each.together == 1]
    sections = [(each, each.section(DiffusionSection(eps=EPS))) for each in methods]
    method, options = next(
        (each, options)
        for each, options in sections
        if options.masking == masking and not options.weighs_by_count and options.t_sampler == "uniform"
    )
    return Estimator(method, Noise(options), TSampler(0, 1, density=density))


@pytest.mark.parametrize("density", [UNIFORM, SKEWED], ids=["uniform", "skewed"])
@pytest.mark.parametrize("masking", ["bernoulli", "independent", "mirror", "complement"])
def test_weighted_draws_have_the_second_moment_of_training(masking: str, density: DensityTable) -> None:
    estimator = estimator_of(masking, density)
    assert estimator.has_tails
    draws = [estimator.draw(SAMPLE, 0, index) for index in range(DRAWS)]
    values = np.array([weight * np.sum(noised.weights.sum(axis=0) ** 2) for noised, weight in draws])
    error = values.std() / math.sqrt(DRAWS)
    truth = expected(masking, density)
    assert abs(values.mean() - truth) < 4 * error
    assert error < 0.15 * truth
    weights = np.array([weight for _, weight in draws])
    assert weights.mean() == pytest.approx(1, abs=4 * weights.std() / math.sqrt(DRAWS))


def test_plain_draws_would_see_too_few_rare_masks() -> None:
    """What the tails are for: the same number of draws as training makes them is three times less certain."""
    estimator = estimator_of("bernoulli", UNIFORM)
    tails = [estimator.draw(SAMPLE, 0, index) for index in range(DRAWS)]
    weighted = np.array([weight * np.sum(noised.weights**2) for noised, weight in tails])
    plain = []
    for index in range(DRAWS):
        uniforms = generator(0, Stream.VARIANCE, index).random(N + 1)
        levels = estimator.t_sampler.draw(index)
        plain.append(np.sum(noise_sample(SAMPLE, levels, uniforms, estimator.noise).weights ** 2))
    rare = expected("bernoulli", UNIFORM) - np.mean(plain)  # what they miss adds to what they show as error
    assert max(np.std(plain), abs(rare) * math.sqrt(DRAWS)) > 3 * weighted.std()


@pytest.mark.parametrize("name", ["count", "exact", "stratified", "window"])
def test_bounded_weights_are_drawn_as_in_training(name: str) -> None:
    (method,) = [each for each in compared_methods(8) if each.name == name]
    options = method.section(DiffusionSection())
    estimator = Estimator(method, Noise(options), TSampler(0, 8))
    assert [estimator.draw(SAMPLE, 0, index)[1] for index in range(20)] == [1.0] * 20
