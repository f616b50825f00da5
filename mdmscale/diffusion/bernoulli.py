"""Bernoulli masks: each position is masked independently of the others, at a rate that t decides.

Legend: length = tokens of the sample; rows = forward rows of the sample.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mdmscale.diffusion.corruption import Corruption, Draw, NoisedRows
from mdmscale.diffusion.counts import count_weight
from mdmscale.diffusion.schedule import Level, mask_rate


def same(t: Level) -> Level:
    return t


def reflected(t: Level) -> Level:
    return 1 - t


@dataclass(frozen=True)
class BernoulliMasks(Corruption):
    """Rows whose positions are masked independently of each other. The two rows of a pair are antithetic.

    levels: for each row, the t at which it is masked, as a function of the sample's t.
    """

    levels: tuple[Callable[[Any], Any], ...]

    takes_extra_rates = True
    can_weigh_by_count = True

    @property
    def num_rows(self) -> int:
        return len(self.levels)

    @property
    def is_coupled(self) -> bool:
        return len(self.levels) > 1

    @property
    def needs_symmetric_range(self) -> bool:
        return reflected in self.levels

    def rates(self, draw: Draw) -> np.ndarray:
        """The mask probability of each position, float64 [rows, length]; 0 where it is not eligible.

        With ISAD (arXiv 2511.18159) it is min(r + delta, 1) for a delimiter, whose weight is divided by it.
        """
        t = float(draw.levels.t[0])
        rates = np.array([mask_rate(level(t), draw.eps) for level in self.levels])
        return np.where(draw.eligible, np.minimum(rates[:, None] + draw.extra_rates, 1.0), 0.0)

    def corrupt(self, draw: Draw) -> NoisedRows:
        rates = self.rates(draw)
        masks = antithetic_masks(draw.uniforms[0], rates)
        weights = np.zeros(masks.shape)
        for row, level in enumerate(self.levels):
            factor = draw.share / self.num_rows
            if draw.by_count:
                weights[row, masks[row]] = factor * _count_weight(int(masks[row].sum()), level, draw)
            else:
                weights[row, masks[row]] = factor * _level_weight(level, draw) / rates[row, masks[row]]
        return NoisedRows(masks, weights)


def _level_weight(level: Callable[[Any], Any], draw: Draw) -> float:
    """w / p at the level of a row. 1 - t has, at its own value, the density that t has: 1 / p is shared."""
    levels = draw.levels
    return float((levels.loss_weight.at(level(levels.t), draw.eps) * levels.importance_weights)[0])


def _count_weight(count: int, level: Callable[[Any], Any], draw: Draw) -> float:
    """A_l / P_l of a row with `count` masked tokens, whose level has its own density."""
    if count == 0:
        return 0.0
    density = draw.levels.density.reflected if level is reflected else draw.levels.density
    return count_weight(count, draw.num_eligible, draw.levels.loss_weight, density, draw.eps)


def antithetic_masks(uniforms: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """Masks whose marginals are Bernoulli(rates). The two masks of a pair are antithetic.

    The first row is m = [U < r]. The second is m' = [U >= 1 - r'] with the same uniforms U. So a position
    that is masked in one row tends to be unmasked in the other. With r' = r this is MIRROR (arXiv
    2511.18159): Cov(m, m') = max(2r - 1, 0) - r^2 <= 0. With r' = r(1 - t) the masks are complements, up to
    eps.

    Args:
        uniforms: float64 [length] in [0, 1).
        rates: float64 [rows, length].

    Returns:
        bool [rows, length].
    """
    first = uniforms < rates[0]
    return np.stack([first, *(uniforms >= 1 - second for second in rates[1:])])


SINGLE = BernoulliMasks((same,))


@dataclass(frozen=True)
class IndependentRows(Corruption):
    """Several rows a sample, each a Bernoulli mask at a t of its own: what coupled rows must beat."""

    rows: int

    takes_rows = True
    takes_extra_rates = True
    can_weigh_by_count = True

    @property
    def num_rows(self) -> int:
        return self.rows

    @property
    def num_uniforms(self) -> int:
        return self.rows

    @property
    def probed(self) -> Corruption:
        return SINGLE

    def num_t(self, length: int) -> int:
        return self.rows

    def corrupt(self, draw: Draw) -> NoisedRows:
        rows = [
            SINGLE.corrupt(replace(draw, levels=draw.levels.part(row), uniforms=draw.uniforms[row : row + 1]))
            for row in range(self.rows)
        ]
        return NoisedRows(
            np.concatenate([row.masks for row in rows]),
            np.concatenate([row.weights for row in rows]) / self.rows,
            t_of=np.arange(self.rows)[:, None],
        )
