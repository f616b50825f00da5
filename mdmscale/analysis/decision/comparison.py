"""What is compared between conditions, over seeds and texts that both have.

Legend: seeds; items = questions or sequences.
"""

from dataclasses import dataclass

import numpy as np

from mdmscale.analysis.study.statistics import (
    CONFIDENCE,
    NUM_RESAMPLES,
    Difference,
    few_seeds_factor,
    paired_difference,
)
from mdmscale.diffusion.uniforms import Stream, generator
from mdmscale.training.gradient_norms import variation


@dataclass(frozen=True, eq=False)
class Scores:
    """The scores of a condition's final runs with one kind of weights.

    values: float64 [seeds, items]: higher is better for an accuracy, lower for a likelihood.
    """

    values: np.ndarray

    @property
    def of_seeds(self) -> np.ndarray:
        """float64 [seeds]."""
        return self.values.mean(axis=1)

    @property
    def mean(self) -> float:
        return float(self.values.mean())

    @property
    def spread(self) -> float:
        """The standard deviation over seeds, on the same items; 0 for a single seed."""
        return float(self.of_seeds.std(ddof=1)) if len(self.values) > 1 else 0.0


def difference(method: Scores, reference: Scores, confidence: float = CONFIDENCE) -> Difference:
    """The method less the reference, paired by seed and item, with a bootstrap interval over both."""
    return paired_difference(method.values - reference.values, confidence)


def spread_ratio(method: Scores, reference: Scores, confidence: float = CONFIDENCE) -> Difference:
    """The method's spread over seeds as a share of the reference's, with a bootstrap interval over seeds.

    Seeds are drawn in pairs. The interval is widened for few seeds in the logarithm. NaN where a spread is 0.
    """
    first, second = method.of_seeds, reference.of_seeds
    num_seeds = len(first)
    if num_seeds < 2 or not method.spread or not reference.spread:
        return Difference(np.nan, np.nan, np.nan)
    value = np.log(method.spread / reference.spread)
    drawn = generator(0, Stream.BOOTSTRAP, 1).integers(num_seeds, size=(NUM_RESAMPLES, num_seeds))
    spreads = first[drawn].std(axis=1, ddof=1), second[drawn].std(axis=1, ddof=1)
    usable = (spreads[0] > 0) & (spreads[1] > 0)
    ratios = np.log(spreads[0][usable] / spreads[1][usable])
    low, high = np.quantile(ratios, [(1 - confidence) / 2, (1 + confidence) / 2])
    widening = few_seeds_factor(num_seeds, confidence)
    edges = np.exp([value, value + widening * (low - value), value + widening * (high - value)])
    return Difference(*(float(edge) for edge in edges))


def gradient_variation(norms: np.ndarray) -> float:
    """Standard deviation over mean of gradient norms [seeds, steps] in the second half, a mean over seeds."""
    late = norms[:, norms.shape[1] // 2 :]
    return float(np.mean([variation(of_seed) for of_seed in late]))


def clipped_share(norms: np.ndarray, limit: float) -> float:
    """The share of steps whose gradient is clipped; 0 without clipping."""
    return float((norms > limit).mean()) if limit else 0.0
