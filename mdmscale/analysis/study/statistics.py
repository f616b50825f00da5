"""How sure a study can be: intervals of paired differences, and the differences that it cannot tell.

Legend: seeds = runs of a method; items = questions of the test.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import stats

from mdmscale.diffusion.uniforms import Stream, generator

CONFIDENCE = 0.95
NUM_RESAMPLES = 4000


@dataclass(frozen=True)
class Difference:
    """The mean of a method less that of the reference, and an interval around it."""

    mean: float
    low: float
    high: float


def paired_difference(differences: np.ndarray, confidence: float = CONFIDENCE) -> Difference:
    """The mean of paired differences [seeds, items], with a bootstrap interval over both.

    Seeds and items are drawn with replacement independently of each other, as other seeds on other questions
    would be. With few seeds such an interval is too narrow: for n seeds its width is that of a normal
    distribution with the variance (n - 1) / n. So it is widened to Student's t, by
    sqrt(n / (n - 1)) t(n - 1) / z (Hesterberg, arXiv 1411.5279). A single seed shows no
    variation over seeds: then the interval is over items only, and not widened.
    """
    num_seeds, num_items = differences.shape
    of_seeds, of_items = _resamples(num_seeds, num_items)
    means = ((of_seeds @ differences) * of_items).sum(axis=1) / differences.size  # [resamples]
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    mean, widening = float(differences.mean()), few_seeds_factor(num_seeds, confidence)
    return Difference(mean, mean + widening * float(low - mean), mean + widening * float(high - mean))


@lru_cache(maxsize=2)
def _resamples(num_seeds: int, num_items: int) -> tuple[np.ndarray, np.ndarray]:
    """How often each seed and each item is drawn: float32 [resamples, seeds] and [resamples, items].

    They are the same for all comparisons of a study, as they take longer to draw than to use.
    """
    draws = generator(0, Stream.BOOTSTRAP, 0)
    of_seeds, of_items = (
        draws.multinomial(number, np.full(number, 1 / number), size=NUM_RESAMPLES).astype(np.float32)
        for number in (num_seeds, num_items)
    )
    return of_seeds, of_items


def few_seeds_factor(num_seeds: int, confidence: float = CONFIDENCE) -> float:
    """By what a bootstrap interval over so many seeds is widened; 1 for a single seed."""
    if num_seeds == 1:
        return 1.0
    level = (1 + confidence) / 2
    student, normal = stats.t.ppf(level, num_seeds - 1), stats.norm.ppf(level)
    return float(math.sqrt(num_seeds / (num_seeds - 1)) * student / normal)


def detectable_difference(spread: float, num_seeds: int, confidence: float = CONFIDENCE) -> float:
    """The smallest difference of two means that could be told from chance, in units of `spread`.

    It is half the interval of Student's t for two methods with `num_seeds` runs each, whose results have the
    standard deviation `spread`: t(2n - 2) spread sqrt(2 / n). Infinite for a single seed.
    """
    if num_seeds == 1:
        return math.inf
    return float(stats.t.ppf((1 + confidence) / 2, 2 * num_seeds - 2) * spread * math.sqrt(2 / num_seeds))


def pooled_spread(groups: list[list[float]]) -> float:
    """The standard deviation within groups of results, one group a method; 0 where no group has two."""
    freedom = sum(len(group) - 1 for group in groups)
    squares = sum(float(np.square(np.array(group) - np.mean(group)).sum()) for group in groups)
    return math.sqrt(squares / freedom) if freedom else 0.0
