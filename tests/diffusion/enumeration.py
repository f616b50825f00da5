"""Exact expectations of estimators: all masks are enumerated, and u is integrated exactly piece by piece."""

from collections.abc import Iterable, Iterator
from itertools import pairwise, permutations, product
from typing import Any

import numpy as np
from numpy.polynomial.legendre import leggauss

from mdmscale.config.diffusion import DiffusionSection
from mdmscale.diffusion.bernoulli import SINGLE, BernoulliMasks, IndependentRows
from mdmscale.diffusion.corruption import Draw
from mdmscale.diffusion.density import DensityTable
from mdmscale.diffusion.exact_counts import ExactCounts
from mdmscale.diffusion.levels import Levels
from mdmscale.diffusion.loss_weight import ELBO, LossWeight
from mdmscale.diffusion.noise import Noise, NoisedSample, noise_sample
from mdmscale.diffusion.sample import Sample

EPS = 1e-3
SKEWED = DensityTable.from_weights(np.array([0, 0.01, 0.1, 0.4, 0.75, 1]), np.array([9, 4, 1, 0.0, 2]), 0.05)

CrossEntropies = dict[tuple[bool, ...], np.ndarray]
"""Cross-entropy of each masked position, float64 [length], under each mask."""


def make_noise(**options: Any) -> Noise:
    return Noise(DiffusionSection(eps=EPS, **options))


def random_table(length: int, seed: int = 0) -> CrossEntropies:
    """Cross-entropies that depend on the whole mask."""
    rng = np.random.default_rng(seed)
    return {mask: rng.random(length) * np.array(mask) for mask in product([False, True], repeat=length)}


def objective(loss_weight: LossWeight, table: CrossEntropies, sample: Sample, eps: float = EPS) -> float:
    """int w(t) E_m l(x, t, m) dt from its definition."""
    return sum(
        weight * float(loss_weight.at(np.array(t), eps)) * objective_at(t, table, sample, eps)
        for t, weight in nodes(loss_weight.edges, num=int(sample.eligible.sum()))
    )


def objective_at(t: float, table: CrossEntropies, sample: Sample, eps: float = EPS) -> float:
    """E_m l(x, t, m), enumerated from its definition."""
    rate, places = (1 - eps) * t + eps, np.flatnonzero(sample.eligible)
    total = 0.0
    for bits in product([False, True], repeat=len(places)):
        mask = np.zeros(len(sample.eligible), dtype=bool)
        mask[places] = bits
        probability = rate ** sum(bits) * (1 - rate) ** (len(bits) - sum(bits))
        total += probability * table[tuple(mask.tolist())].sum() / rate
    return total / len(places)


def expectation(
    noise: Noise,
    density: DensityTable,
    table: CrossEntropies,
    sample: Sample,
    loss_weight: LossWeight = ELBO,
    moment: int = 1,
    num_nodes: int | None = None,
) -> float:
    """The expectation over u and uniforms of the loss that `noise_sample` gives, or of its power.

    `num_nodes` per piece of u are enough if the integrand is a polynomial there: by default that of the loss.
    """
    if isinstance(noise.corruption, ExactCounts):
        assert len(sample.eligible) < 6, "all orders are enumerated"
        return _mean_over_orders(noise, density, loss_weight, table, sample, moment)
    half = (0.5 - noise.options.eps) / (1 - noise.options.eps)  # pieces change where r(t) = 1/2
    edges = np.concatenate([density.edges, loss_weight.edges, [half]])
    cuts = density.distribution(np.concatenate([edges, 1 - edges]))
    num = num_nodes or int(sample.eligible.sum()) // 2 + 1
    return sum(
        weight * expectation_at(u, noise, table, sample, density, loss_weight, moment)
        for u, weight in nodes(cuts, num)
    )


def expectation_at(
    u: float,
    noise: Noise,
    table: CrossEntropies,
    sample: Sample,
    density: DensityTable | None = None,
    loss_weight: LossWeight = ELBO,
    moment: int = 1,
) -> float:
    """`expectation` at one u, for Bernoulli masks. Independent rows all have this u; their mean is meant."""
    corruption, density = noise.corruption, density or DensityTable.uniform()
    num_rows = corruption.num_rows if isinstance(corruption, IndependentRows) else 1
    assert num_rows == 1 or moment == 1, "the mean over rows has the moments of its rows only if it is one"
    total = 0.0
    for row in range(num_rows):
        levels = Levels(np.full(num_rows, 0.5), density, loss_weight)
        levels.u[row] = u
        for uniforms, probability in _masks_at(noise, levels.part(row), sample):
            rows = np.full((num_rows, len(uniforms)), 0.9)  # other rows mask nothing
            rows[row] = uniforms
            noised = noise_sample(sample, levels, rows, noise)
            value = loss(noised.row(row) if num_rows > 1 else noised, table)
            total += probability * value**moment
    return total


def loss(noised: NoisedSample, table: CrossEntropies) -> float:
    rows = zip(noised.masks, noised.weights, strict=True)
    return sum(float(weights @ table[tuple(mask.tolist())]) for mask, weights in rows)


def nodes(cuts: Iterable[float], num: int) -> Iterator[tuple[float, float]]:
    """Gauss-Legendre nodes and weights of each piece between `cuts`."""
    places, weights = leggauss(num)
    for low, high in pairwise(sorted(cuts)):
        if high - low > 1e-15:
            yield from zip(low + (high - low) * (places + 1) / 2, weights / 2 * (high - low), strict=True)


def _masks_at(noise: Noise, levels: Levels, sample: Sample) -> Iterator[tuple[np.ndarray, float]]:
    """Uniforms of every outcome of Bernoulli masks at a level, with its probability.

    A position's rates r, r' cut [0, 1) at r and 1 - r' into at most three pieces. Its masks are constant on
    each piece, so one uniform per piece is enough.
    """
    corruption = noise.corruption if isinstance(noise.corruption, BernoulliMasks) else SINGLE
    length = len(sample.eligible)
    extra = noise.extra_rates(sample)
    draw = Draw(levels, np.zeros((1, length)), sample.eligible, 1.0, noise.options.eps, extra)
    rates = corruption.rates(draw)
    places = np.flatnonzero(sample.eligible)
    pieces = []
    for place in places:
        cuts = np.unique([0.0, rates[0, place], 1 - rates[-1, place], 1.0])
        pieces.append([(low, high) for low, high in pairwise(cuts) if high > low])
    for choice in product(*pieces):
        uniforms = np.zeros(length)
        uniforms[places] = [(low + high) / 2 for low, high in choice]
        yield uniforms, float(np.prod([high - low for low, high in choice]))


def _mean_over_orders(
    noise: Noise,
    density: DensityTable,
    loss_weight: LossWeight,
    table: CrossEntropies,
    sample: Sample,
    moment: int,
) -> float:
    """For exact counts: rows depend on the order of the uniforms, and on u only through their counts.

    Those change where the u of a row, in any stratum and maybe mirrored, is F(l / n).
    """
    places, rows = np.flatnonzero(sample.eligible), noise.corruption.num_rows
    changes = density.distribution(np.arange(len(places) + 1) / len(places)) * rows % 1
    within = np.concatenate([[0, 1], changes, 1 - changes])
    cuts = (np.arange(rows)[:, None] + within).flatten() / rows
    orders = list(permutations(range(len(places))))
    total = 0.0
    for u, weight in nodes(cuts, num=1):
        for order in orders:
            uniforms = np.zeros(len(sample.eligible))
            uniforms[places] = np.array(order) / len(places)
            noised = noise_sample(sample, Levels(np.array([u]), density, loss_weight), uniforms, noise)
            total += weight / len(orders) * loss(noised, table) ** moment
    return total
