"""Corruption: how a clean sample becomes noised rows with weights.

A corruption decides how many forward rows a sample takes, which positions are masked in each, and what each
masked position weighs. It is a pure function of uniforms and t. `CORRUPTIONS` names the ones that
`diffusion.masking` chooses from; a new one is a new entry, and nothing else in the project asks which it is.

Legend: length = tokens of the sample; rows = forward rows of the sample; columns = positions of such a row,
as many as the length unless the corruption says otherwise.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from mdmscale.diffusion.objective import position_weight
from mdmscale.diffusion.schedule import mask_rate


@dataclass(frozen=True, eq=False)
class Draw:
    """What a corruption draws a sample's rows from.

    t, importance_weights: float64 [num_t], as many as `Corruption.num_t` asks for, with their 1 / p(t).
    uniforms: float64 [length] in [0, 1), one a position. eligible: bool [length], what may be masked.
    share: what one eligible token counts, see objective.token_share. eps: the smallest mask rate.
    extra_rates: float64 [length], added to the mask rates (ISAD's delimiters), 0 elsewhere.
    """

    t: np.ndarray
    importance_weights: np.ndarray
    uniforms: np.ndarray
    eligible: np.ndarray
    share: float
    eps: float
    extra_rates: np.ndarray


@dataclass(frozen=True, eq=False)
class NoisedRows:
    """A sample's rows.

    masks: bool [rows, columns]. weights: float64 [rows, columns], a masked position's whole weight (see
    objective.position_weight), 0 elsewhere. t_of: int64 [columns], which of the sample's t a column belongs
    to; None: there is one. source: int64 [columns], the sample's position that a column shows, for rows that
    show a position more than once; None: column i shows position i. attention: bool [columns, columns], which
    column may look at which; None: all at all.
    """

    masks: np.ndarray
    weights: np.ndarray
    t_of: np.ndarray | None = None
    source: np.ndarray | None = None
    attention: np.ndarray | None = None


class Corruption(Protocol):
    """One way to corrupt. `needs_symmetric_t`: it also uses 1 - t, so t must be as likely as 1 - t."""

    @property
    def num_rows(self) -> int: ...

    @property
    def needs_symmetric_t(self) -> bool: ...

    @property
    def takes_extra_rates(self) -> bool: ...

    def num_t(self, length: int) -> int:
        """How many t are drawn for a sample of `length` tokens."""
        ...

    def corrupt(self, draw: Draw) -> NoisedRows:
        """The rows of one sample. Their summed weighted cross-entropies have the objective as expectation."""
        ...


Level = TypeVar("Level", float, np.ndarray)


def same(t: Level) -> Level:
    return t


def reflected(t: Level) -> Level:
    return 1 - t


@dataclass(frozen=True)
class BernoulliMasks:
    """Rows whose positions are masked independently; the rows of a pair are antithetic.

    levels: for each row, the t that it is masked at, as a function of the sample's t.
    """

    levels: tuple[Callable[[Any], Any], ...]

    takes_extra_rates = True

    @property
    def num_rows(self) -> int:
        return len(self.levels)

    @property
    def needs_symmetric_t(self) -> bool:
        return reflected in self.levels

    def num_t(self, length: int) -> int:
        return 1

    def rates(self, draw: Draw) -> np.ndarray:
        """The probability that each position is masked, float64 [rows, length]; 0 where it is not eligible.

        With ISAD (arXiv 2511.18159) a delimiter's is min(r + delta, 1); its weight divides by that.
        """
        t = float(draw.t[0])
        rates = np.array([mask_rate(level(t), draw.eps) for level in self.levels])
        return np.where(draw.eligible, np.minimum(rates[:, None] + draw.extra_rates, 1.0), 0.0)

    def corrupt(self, draw: Draw) -> NoisedRows:
        rates = self.rates(draw)
        masks = antithetic_masks(draw.uniforms, rates)
        weights = np.zeros(masks.shape)
        weights[masks] = position_weight(
            draw.share, float(draw.importance_weights[0]), rates[masks], self.num_rows
        )
        return NoisedRows(masks, weights)


def antithetic_masks(uniforms: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """Masks that are marginally Bernoulli(rates), those of a pair antithetic.

    The first row is m = [U < r], the second m' = [U >= 1 - r'] of the same uniforms, so a position that is
    masked in one tends to be open in the other. With r' = r that is MIRROR (arXiv 2511.18159): Cov(m, m') =
    max(2r - 1, 0) - r^2 <= 0. With r' = r(1 - t) the two are each other's complement, up to eps.

    Args:
        uniforms: float64 [length] in [0, 1).
        rates: float64 [rows, length].

    Returns:
        bool [rows, length].
    """
    first = uniforms < rates[0]
    return np.stack([first, *(uniforms >= 1 - second for second in rates[1:])])


CORRUPTIONS: dict[str, Corruption] = {
    "bernoulli": BernoulliMasks((same,)),
    "mirror": BernoulliMasks((same, same)),
    "complement": BernoulliMasks((same, reflected)),
}
