"""The statistics of a wave: WAVE samples, whose u are spread over [0, 1), each drawn by every estimator.

Waves are independent of each other. So all estimates are means over waves or U-statistics of them.
Legend: M = estimators; V = vectors whose means are kept apart; 3 = the measures (sums.MEASURES);
    width = params + 1, the length of a draw's vector.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

from mdmscale.analysis.variance.draws import Draw, Estimator, Gauge
from mdmscale.analysis.variance.sums import Metric
from mdmscale.diffusion.sample import Sample

Samples = list[tuple[int, Sample]]  # with their indices
TRIPLES = 3


@dataclass(frozen=True, eq=False)
class WaveStatistics:
    """What a wave contributes.

    second: [M, 3], the mean of ||Y||^2 over the wave, Y the mean over samples whose t are spread together.
    squared: [V, 3], the squared norms of the wave's mean vectors. same_t, within: [3], the mean of <Y, Y'>
    for two draws of standard of a sample, at one t and at two. draws: [draws, 5], t, loss, squared norm of
    the gradient, that of the logit gradient, and weight at this t of draws of standard.
    """

    second: np.ndarray
    squared: np.ndarray
    same_t: np.ndarray
    within: np.ndarray
    draws: np.ndarray


def vector_places(estimators: list[Estimator]) -> list[int]:
    """For each estimator, the vector whose mean is its expected gradient.

    Vector 0 is the mean over all unbiased estimators with independent samples. The mean of spread samples
    varies less than that of independent ones, so those have a vector of their own, as has a biased method.
    """
    places, free = [], 1
    for estimator in estimators:
        is_shared = estimator.method.is_unbiased and estimator.method.together == 1
        places.append(0 if is_shared else free)
        free += not is_shared
    return places


@dataclass(frozen=True, eq=False)
class Measurer:
    """What the draws of a wave are measured with."""

    gauge: Gauge
    metric: Metric
    seed: int

    def draw(self, estimator: Estimator, index: int, sample: Sample) -> tuple[Draw, float]:
        """One draw of a sample, and its weight in a mean over draws."""
        noised, weight = estimator.draw(sample, self.seed, index)
        return self.gauge.measure(noised), weight


def measure_wave(
    measurer: Measurer, estimators: list[Estimator], samples: Samples
) -> tuple[WaveStatistics, torch.Tensor]:
    """The statistics of a wave and its mean vectors [V, width]. Standard is the first estimator."""
    places = vector_places(estimators)
    means = measurer.gauge.zeros(max(places) + 1)
    shared_rows = sum(each.rows for each, place in zip(estimators, places, strict=True) if place == 0)
    of_standard, mean = measure_standard(measurer, estimators[0], samples)
    means[0] += mean * estimators[0].rows / shared_rows
    second = [of_standard.second[0]]
    for estimator, place in zip(estimators[1:], places[1:], strict=True):
        measure = measure_independent if estimator.method.together == 1 else measure_spread
        moment, mean = measure(measurer, estimator, samples)
        second.append(moment)
        means[place] += mean if place else mean * estimator.rows / shared_rows
    squared = np.stack([measurer.metric.square(mean) for mean in means])
    return replace(of_standard, second=np.stack(second), squared=squared), means


def measure_independent(
    measurer: Measurer, estimator: Estimator, samples: Samples
) -> tuple[np.ndarray, torch.Tensor]:
    """The mean of ||Y||^2 [3] and of Y [width] over independent samples."""
    second, mean = np.zeros(3), measurer.gauge.zeros()
    for index, sample in samples:
        draw, weight = measurer.draw(estimator, index, sample)
        second += weight * measurer.metric.square(draw.vector) / len(samples)
        mean += weight * draw.vector / len(samples)
    return second, mean


def measure_spread(
    measurer: Measurer, estimator: Estimator, samples: Samples
) -> tuple[np.ndarray, torch.Tensor]:
    """The same, with Y the mean over samples whose t are spread together."""
    second, mean = np.zeros(3), measurer.gauge.zeros()
    together = estimator.method.together
    for start in range(0, len(samples), together):
        batch = measurer.gauge.zeros()
        for index, sample in samples[start : start + together]:
            batch += measurer.draw(estimator, index, sample)[0].vector / together
        second += measurer.metric.square(batch) * together / len(samples)
        mean += batch * together / len(samples)
    return second, mean


def measure_standard(
    measurer: Measurer, standard: Estimator, samples: Samples
) -> tuple[WaveStatistics, torch.Tensor]:
    """The statistics of standard, without `squared`, and its mean [width].

    Three draws of a sample belong together: under two masks at one t, and under one at another. As every
    method is compared with standard, it has TRIPLES of them.
    """
    moments, draws, mean = np.zeros((3, 3)), [], measurer.gauge.zeros()
    for index, sample in samples:
        levels, of_levels = standard.levels(index, len(sample.token_ids), num_t=2 * TRIPLES)
        for triple in range(TRIPLES):
            places = 2 * triple + np.array([0, 0, 1])
            found, of_t, of_mask = [], of_levels[places], np.zeros(3)
            for number, place in enumerate(places):
                level, replicate = levels.part(place), 3 * triple + number
                noised, of_mask[number] = standard.noised(sample, level, measurer.seed, index, replicate)
                draw = measurer.gauge.measure(noised)
                squared = float(draw.vector[:-1].square().sum())
                draws.append((float(level.t[0]), draw.loss, squared, draw.proxy, of_mask[number]))
                found.append(draw.vector)
            vectors, weights = torch.stack(found), of_t * of_mask
            products = measurer.metric.products(vectors, vectors)  # [3, 3, 3]
            moments[0] += weights @ products[[0, 1, 2], [0, 1, 2]] / 3
            moments[1] += of_t[0] * of_mask[0] * of_mask[1] * products[0, 1]
            moments[2] += weights[2] * weights[:2] @ products[:2, 2] / 2
            mean += torch.from_numpy(weights).to(vectors) @ vectors / 3
    moments, mean = moments / TRIPLES, mean / (TRIPLES * len(samples))
    second, same_t, within = moments / len(samples)
    return WaveStatistics(second[None], np.zeros((0, 3)), same_t, within, np.array(draws)), mean
