"""Second moments of an estimator over cells of t, from which the variance of every method follows.

Y is the gradient of a draw, or its loss as a gradient with one element. g(x, t) = E[Y | x, t], and g_k is its
mean over x and over t in cell k. All estimates are linear in samples or U-statistics, and so unbiased.
"""

from dataclasses import dataclass

import numpy as np
import torch

from mdmscale.analysis.variance.draws import SINGLES, Draws
from mdmscale.parallel.collectives import all_reduce_sum
from mdmscale.parallel.ranks import Ranks

CHUNK = 1 << 18  # parameters whose means are on every rank at a time


@dataclass(frozen=True, eq=False)
class Moments:
    """Averages over samples.

    single: E||Y||^2 of a single draw, float64 [K]. paired: the same of each paired masking. same_t:
    E||g(x, t)||^2, float64 [K]. within: E_x <g(x, k), g(x, k')>, float64 [K, K]. mean: <g_k, g_k'>, float64
    [K, K].
    """

    single: np.ndarray
    paired: dict[str, np.ndarray]
    same_t: np.ndarray
    within: np.ndarray
    mean: np.ndarray


@dataclass(frozen=True, eq=False)
class SampleStatistics:
    """The contribution of one sample to the moments. `own` [K, K] are the products of its mean gradients."""

    single: np.ndarray
    paired: dict[str, np.ndarray]
    same_t: np.ndarray
    within: np.ndarray
    own: np.ndarray


def sample_statistics(draws: Draws) -> SampleStatistics:
    """The statistics of a sample, from products of its draws."""
    vectors = draws.single
    products = (vectors @ vectors.T).double().cpu().numpy()
    cells = len(vectors) // SINGLES
    blocks = products.reshape(cells, SINGLES, cells, SINGLES)  # [K, 3, K, 3]
    own = blocks.mean(axis=(1, 3))
    at = np.arange(cells)
    same_cell = blocks[at, :, at, :]  # [K, 3, 3]
    within = own.copy()
    within[at, at] = (same_cell[:, 0, 2] + same_cell[:, 1, 2]) / 2
    single = np.trace(same_cell, axis1=1, axis2=2) / SINGLES
    return SampleStatistics(single, draws.paired, same_cell[:, 0, 1], within, own)


def mean_vectors(draws: Draws) -> torch.Tensor:
    """The mean gradient of a sample in each cell, [K, params]."""
    vectors = draws.single
    return vectors.reshape(-1, SINGLES, vectors.shape[1]).mean(dim=1)


class GroupSums:
    """Sums of the samples' mean gradients by group. Group i is on rank i modulo world_size.

    The intervals come from leaving out one group at a time (delete-a-group jackknife).
    """

    def __init__(self, num_groups: int, cells: int, params: int, ranks: Ranks) -> None:
        self.num_groups, self.cells, self.params, self.ranks = num_groups, cells, params, ranks
        self.mine = list(range(ranks.rank, num_groups, ranks.world_size))
        self.sums = torch.zeros(len(self.mine), cells, params, device=ranks.device)

    def add(self, group: int, draws: Draws) -> None:
        self.sums[self.mine.index(group)] += mean_vectors(draws).to(self.sums)

    def products(self) -> np.ndarray:
        """Inner products between all groups and cells, float64 [groups, K, groups, K], on every rank."""
        size = self.num_groups * self.cells
        total = torch.zeros(size, size, dtype=torch.float64, device=self.ranks.device)
        for start in range(0, self.params, CHUNK):
            width = min(CHUNK, self.params - start)
            part = torch.zeros(self.num_groups, self.cells, width, device=self.ranks.device)
            part[self.mine] = self.sums[:, :, start : start + width]
            flat = all_reduce_sum(part).flatten(0, 1)
            total += (flat @ flat.T).double()
        shape = (self.num_groups, self.cells, self.num_groups, self.cells)
        return total.reshape(shape).cpu().numpy()


def compute_moments(
    samples: list[SampleStatistics], groups: np.ndarray, products: np.ndarray, left_out: int | None = None
) -> Moments:
    """The moments over samples, without those of group `left_out`.

    Args:
        samples: statistics of every sample.
        groups: int [samples], the group of each.
        products: what GroupSums.products gives.
    """
    kept = [sample for sample, group in zip(samples, groups, strict=True) if group != left_out]
    count = len(kept)
    places = [group for group in range(len(products)) if group != left_out]
    total = products[places][:, :, places].sum(axis=(0, 2))  # [K, K]
    own = _average([sample.own for sample in kept])
    return Moments(
        single=_average([sample.single for sample in kept]),
        paired={name: _average([sample.paired[name] for sample in kept]) for name in kept[0].paired},
        same_t=_average([sample.same_t for sample in kept]),
        within=_average([sample.within for sample in kept]),
        mean=(total - count * own) / (count * (count - 1)),
    )


def _average(values: list[np.ndarray]) -> np.ndarray:
    return sum(values, start=np.zeros(())) / len(values)
