"""Draws rare masks more often than training does, and weighs them down, so that means over draws stay right.

Masks weighed by 1 / r have rare, large gradients. Each decade of t contributes as much to the second moment,
but most t are large, and at small t most masks are empty. So half of the draws have t spread evenly over
log t, and half have at least one masked token (defensive importance sampling: no weight exceeds 2).
"""

import numpy as np

from mdmscale.diffusion.bernoulli import BernoulliMasks, IndependentRows
from mdmscale.diffusion.corruption import Corruption
from mdmscale.diffusion.density import DensityTable
from mdmscale.diffusion.p_pots import TABLE_EDGES
from mdmscale.diffusion.schedule import mask_rate

PLAIN = 0.5  # the share of draws as training makes them


def tail_levels(density: DensityTable, eps: float, corruption: Corruption) -> DensityTable:
    """The density over u, for a run that draws t from `density`: a share of it is even over log r(t)."""
    logs = np.diff(np.log(TABLE_EDGES + eps))
    even = logs / logs.sum()
    if corruption.needs_symmetric_range:  # it also masks at 1 - t
        at = np.interp(1 - TABLE_EDGES, TABLE_EDGES, np.concatenate([[0.0], np.cumsum(even)]))
        even = (even - np.diff(at)) / 2
    edges = density.distribution(TABLE_EDGES)
    masses = PLAIN * np.diff(edges) + (1 - PLAIN) * even
    return DensityTable(edges, masses / np.diff(edges))


def mask_rates(corruption: Corruption, t: np.ndarray, eps: float) -> list[list[float]]:
    """The mask rates of the rows that each row of uniforms masks, for Bernoulli masks at `t` [num_t]."""
    match corruption:
        case BernoulliMasks():
            return [[float(mask_rate(level(t[0]), eps)) for level in corruption.levels]]
        case IndependentRows():
            return [[float(rate)] for rate in mask_rate(t, eps)]
    return []


def tail_uniforms(
    uniforms: np.ndarray, eligible: np.ndarray, rates: list[list[float]], random: np.random.Generator
) -> tuple[np.ndarray, float]:
    """Uniforms [num_uniforms, length], some with a token moved to where a row masks it, and their weight.

    A row, and one of its n tokens, is chosen at random. If k_j tokens are masked in row j at the rate r_j,
    the density of the result is PLAIN + (1 - PLAIN) times the mean over rows of k_j / (n r_j).
    """
    places, moved, weight = np.flatnonzero(eligible), uniforms.copy(), 1.0
    if not len(places):
        return moved, weight
    for row, of_row in zip(moved, rates, strict=False):
        chosen, place = random.integers(len(of_row)), random.choice(places)
        at, choice = of_row[chosen] * random.random(), random.random()
        if choice >= PLAIN:
            row[place] = 1 - of_row[chosen] + at if chosen else at
        counts = [
            np.sum(row[places] >= 1 - rate if number else row[places] < rate)
            for number, rate in enumerate(of_row)
        ]
        weight /= PLAIN + (1 - PLAIN) * float(np.mean(np.divide(counts, of_row))) / len(places)
    return moved, weight
