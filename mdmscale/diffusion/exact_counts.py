"""Exact counts: a row masks a drawn number of tokens instead of each token at a drawn rate.

The objective depends on a mask only through its tokens, and gives every set of l tokens the same weight
(counts.py). So l is drawn from q, and the set uniformly. No row is empty, and the number of masked tokens
has no noise of its own. q comes from the run's density p over t: q_l is its mass in [(l - 1) / n, l / n).
"""

from dataclasses import dataclass, replace

import numpy as np

from mdmscale.diffusion.corruption import Corruption, Draw, NoisedRows
from mdmscale.diffusion.counts import objective_weight
from mdmscale.diffusion.levels import Levels


@dataclass(frozen=True)
class ExactCounts(Corruption):
    """Rows with exactly l masked tokens. The rows of a sample are coupled.

    Their u lie in as many equal strata of [0, 1), neighbours mirrored, so two rows have u and 1 - u. Their
    masks are arcs of one permutation of the eligible tokens, each beginning where the last one ended, so
    that rows repeat no token before all have been masked. By itself each row has the law of a single one.
    """

    rows: int
    is_fixed: bool = False  # whether `rows` is part of the name

    draws_counts = True

    @property
    def num_rows(self) -> int:
        return self.rows

    @property
    def takes_rows(self) -> bool:
        return not self.is_fixed

    @property
    def is_coupled(self) -> bool:
        return self.num_rows > 1

    @property
    def probed(self) -> Corruption:
        return ExactCounts(1)

    def corrupt(self, draw: Draw) -> NoisedRows:
        n = draw.num_eligible
        u = spread(float(draw.levels.u[0]), self.num_rows)  # [rows]
        levels = replace(draw.levels, u=u)
        masks = np.zeros((self.num_rows, draw.length), dtype=bool)
        weights = np.zeros(masks.shape)
        if n:
            places = np.flatnonzero(draw.eligible)
            order = places[np.argsort(draw.uniforms[0, places])]  # [n]
            counts = counts_at(levels.t, n)
            begins = np.cumsum(counts) - counts
            for row, (begin, count) in enumerate(zip(begins, counts, strict=True)):
                at = order[np.arange(begin, begin + count) % n]
                masks[row, at] = True
                weights[row, at] = draw.share * exact_weight(int(count), n, levels, draw.eps) / self.num_rows
        return NoisedRows(masks, weights, t_of=np.arange(self.num_rows)[:, None], levels=levels)


def spread(u: float, num_rows: int) -> np.ndarray:
    """A u in [0, 1) for each row, float64 [rows], in different strata; uniform by itself. The first is u."""
    stratum, within = divmod(u * num_rows, 1)
    rows = np.arange(num_rows)
    mirrored = np.where(rows % 2 == 0, within, 1 - within)
    return np.clip(((stratum + rows) % num_rows + mirrored) / num_rows, 0, np.nextafter(1, 0))


def counts_at(t: np.ndarray, n: int) -> np.ndarray:
    """The number of tokens that level t masks of n, int64 in 1..n with the shape of t."""
    return np.minimum((t * n).astype(int) + 1, n)


def exact_weight(count: int, n: int, levels: Levels, eps: float) -> float:
    """A_l / q_l: the weight of the tokens of an exact mask, for `count` = l."""
    below, above = levels.density.distribution(np.array([count - 1, count]) / n)
    return objective_weight(count, n, levels.loss_weight, eps) / float(above - below)
