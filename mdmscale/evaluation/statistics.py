"""Means, shares, ratios and paired differences of items, with their errors.

Items (texts, questions) are a sample of all that could have been asked, so errors say how far the result of
another sample may lie. Fewer than two items give an error of NaN: nothing is known.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from mdmscale.diffusion.uniforms import Stream, generator

CONFIDENCE = 0.95
NUM_RESAMPLES = 2000

Values = Sequence[float] | np.ndarray


@dataclass(frozen=True)
class Estimate:
    """A value, its standard error, and its degrees of freedom (the number of items less 1)."""

    value: float
    standard_error: float
    freedom: int

    def interval(self, confidence: float = CONFIDENCE) -> tuple[float, float]:
        """The interval of Student's t around the value. NaN where there is no error."""
        if self.freedom < 1:
            return math.nan, math.nan
        reach = float(stats.t.ppf((1 + confidence) / 2, self.freedom)) * self.standard_error
        return self.value - reach, self.value + reach

    def p_value(self) -> float:
        """The two-sided probability of a value at least as far from 0, where the truth is 0."""
        if self.freedom < 1:
            return math.nan
        if self.standard_error == 0:
            return 1.0 if self.value == 0 else 0.0
        return float(2 * stats.t.sf(abs(self.value) / self.standard_error, self.freedom))


def mean(values: Values) -> Estimate:
    """The mean of [items] with its standard error."""
    values = np.asarray(values, dtype=np.float64)
    assert len(values), "no items"
    return _estimate(float(values.mean()), values - values.mean())


def ratio(numerators: Values, denominators: Values) -> Estimate:
    """sum of numerators / sum of denominators, [items] each, such as nats a token.

    The error is the delta method's: that of the mean of (numerator - ratio * denominator) / mean denominator.
    """
    value, residuals = _linearised(numerators, denominators)
    return _estimate(value, residuals)


def ratio_difference(first: tuple[Values, Values], second: tuple[Values, Values]) -> Estimate:
    """The second ratio minus the first one, of the same items. Both are (numerators, denominators).

    What makes an item hard for both cancels, so that this error is often a tenth of either ratio's own.
    """
    (left, left_residuals), (right, right_residuals) = _linearised(*first), _linearised(*second)
    return _estimate(right - left, right_residuals - left_residuals)


def difference(first: Values, second: Values) -> Estimate:
    """The mean of second - first, [items] each, with its paired standard error."""
    return mean(np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64))


def wilson(successes: int, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The Wilson interval of a share of `n` items: sensible for few items, and for shares near 0 and 1."""
    if n == 0:
        return 0.0, 1.0
    z = float(stats.norm.ppf((1 + confidence) / 2))
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    reach = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low = 0.0 if successes == 0 else max(0.0, centre - reach)
    high = 1.0 if successes == n else min(1.0, centre + reach)
    return low, high


def mcnemar(only_first: int, only_second: int) -> float:
    """The exact p-value of McNemar's test: how many items only one of two models gets right."""
    total = only_first + only_second
    return 1.0 if total == 0 else float(stats.binomtest(only_first, total, 0.5).pvalue)


def bootstrap(
    statistic: Callable[[np.ndarray], float],
    num_items: int,
    seed: int = 0,
    confidence: float = CONFIDENCE,
    num_resamples: int = NUM_RESAMPLES,
) -> tuple[float, float]:
    """The percentile interval of a statistic over items drawn with replacement.

    Args:
        statistic: gets the numbers of the drawn items, int64 [items]. It is paired if it takes the same items
            of all models.
    """
    drawn = generator(seed, Stream.BOOTSTRAP, 0).integers(num_items, size=(num_resamples, num_items))
    values = [statistic(items) for items in drawn]
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _linearised(numerators: Values, denominators: Values) -> tuple[float, np.ndarray]:
    """A ratio, and what each item adds to its error, [items] with mean 0."""
    above = np.asarray(numerators, dtype=np.float64)
    below = np.asarray(denominators, dtype=np.float64)
    assert len(above) == len(below) and below.sum() > 0
    value = float(above.sum() / below.sum())
    return value, (above - value * below) / below.mean()


def _estimate(value: float, residuals: np.ndarray) -> Estimate:
    n = len(residuals)
    error = math.sqrt(float(np.square(residuals).sum()) / (n * (n - 1))) if n > 1 else math.nan
    return Estimate(value, error, n - 1)
