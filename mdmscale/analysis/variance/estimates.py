"""Variances, their parts and their ratios, with 95% intervals from leaving out one group of waves at a time.

All are per forward row. The mean over R rows has 1 / R of them, so ratios compare methods at equal rows:

    variance of a method with K rows a sample = K (E||Y||^2 - ||G||^2),

with Y the estimator of one sample and G the true gradient. Where t is spread over S samples, Y is their mean,
and the variance is K S (E||Y||^2 - ||G||^2). ||G||^2 is a U-statistic over waves, so it has no bias.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mdmscale.analysis.variance.collect import Collected
from mdmscale.analysis.variance.waves import vector_places

LEAST = 1e-12  # of a second moment: a variance that an unlucky estimate makes negative


@dataclass(frozen=True)
class Estimate:
    """A value and the ends of its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Ratio(Estimate):
    """Standard's variance over a method's. Above 1 is better.

    sure_low: the lower end of an interval that is so wide that those of all methods together hold with 95%.
    """

    sure_low: float


@dataclass(frozen=True, eq=False)
class Variances:
    """Estimates from all waves (first) and from those without each group (then): replicates = groups + 1.

    variance: float64 [replicates, M, 3]. parts: [replicates, 3, 3], A, B and C of standard. signal:
    [replicates, 3], ||G||^2.
    """

    variance: np.ndarray
    parts: np.ndarray
    signal: np.ndarray


def compute_variances(collected: Collected) -> Variances:
    """The variances of every estimator."""
    left_out = (None, *np.unique(collected.groups))
    found = [_without(collected, group) for group in left_out]
    variance, parts, signal = (np.stack(each) for each in zip(*found, strict=True))
    return Variances(variance, parts, signal)


def _without(collected: Collected, group: int | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The variances [M, 3], the parts [3, 3] and ||G||^2 [3] from all waves but those of a group."""
    waves, kept = collected.waves, collected.groups != group
    count = kept.sum()
    sums = np.delete(collected.products, [] if group is None else group, axis=1)
    sums = np.delete(sums, [] if group is None else group, axis=2).sum(axis=(1, 2))  # [V, 3]
    signals = (sums - waves.squared[kept].sum(axis=0)) / (count * (count - 1))  # [V, 3]
    signal = signals[vector_places(collected.estimators)]  # [M, 3]
    second = waves.second[kept].mean(axis=0)
    factors = np.array([[each.rows * each.method.together] for each in collected.estimators])
    variance = factors * np.maximum(second - signal, LEAST * second)
    same_t, within = waves.same_t[kept].mean(axis=0), waves.within[kept].mean(axis=0)
    parts = np.stack([second[0] - same_t, same_t - within, within - signal[0]])
    return variance, parts, signal[0]


def interval(values: np.ndarray, comparisons: int = 1) -> Estimate:
    """The first of `values` [replicates], with the interval of the delete-a-group jackknife.

    comparisons: how many intervals shall hold together with 95% (Bonferroni).
    """
    from scipy.stats import t as student_t

    count = len(values) - 1
    error = math.sqrt((count - 1) / count * float(np.sum((values[1:] - values[1:].mean()) ** 2)))
    half = float(student_t.ppf(1 - 0.025 / comparisons, count - 1)) * error
    return Estimate(float(values[0]), float(values[0]) - half, float(values[0]) + half)


def ratios(variance: np.ndarray) -> list[Ratio]:
    """The ratio of each method in one measure, from `variance` [replicates, M]; the first is standard."""
    logs = np.log(variance[:, :1]) - np.log(variance)
    found = [Ratio(1.0, 1.0, 1.0, 1.0)]
    for of_method in logs[:, 1:].T:
        single = interval(of_method)
        sure = interval(of_method, comparisons=logs.shape[1] - 1)
        found.append(Ratio(*np.exp([single.value, single.low, single.high, sure.low]).tolist()))
    return found


def noise_scale(variances: Variances, measure: int) -> Estimate | None:
    """tr(Sigma) / ||G||^2 of standard: the rows of a batch in which noise is as large as the gradient.

    None if ||G||^2 cannot be told from 0. The interval is that of ||G||^2, which is by far the less certain.
    """
    signal = interval(variances.signal[:, measure])
    if signal.low <= 0:
        return None
    total = float(variances.variance[0, 0, measure])
    return Estimate(total / signal.value, total / signal.high, total / signal.low)


def curves(draws: np.ndarray, edges: Sequence[float] | np.ndarray) -> dict[str, list[float | None]]:
    """Means over draws of standard in each cell of t, with their standard errors; None for an empty cell.

    g: the loss. second_moment, grad_second_moment: E l^2, E||grad||^2. grad_proxy: the head's proxy for it.

    Args:
        draws: float64 [draws, 5], see WaveStatistics.
    """
    t, loss, squared, proxy, weights = draws.T
    values = weights * np.stack([loss, loss**2, squared, proxy])
    found: dict[str, list[float | None]] = {"t": ((np.array(edges[:-1]) + edges[1:]) / 2).tolist()}
    cell = np.searchsorted(edges, t, side="right") - 1
    for name, each in zip(("g", "second_moment", "grad_second_moment", "grad_proxy"), values, strict=True):
        cells = [each[cell == place] for place in range(len(edges) - 1)]
        found[name] = [float(part.mean()) if len(part) else None for part in cells]
        found[f"{name}_error"] = [
            float(part.std(ddof=1) / math.sqrt(len(part))) if len(part) > 1 else None for part in cells
        ]
    return found
