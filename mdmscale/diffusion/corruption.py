"""Corruption: how a clean sample becomes noised rows with weights.

A corruption decides how many forward rows a sample takes, which positions are masked in each row, and the
weight of each masked position. It is a pure function of uniforms and t. `CORRUPTIONS` lists the choices of
`diffusion.masking`. A new corruption is a new entry there; no other code depends on which one is chosen.
`NEXT_TOKENS` takes their place in autoregressive training (`diffusion.objective: ar`).

Legend: length = tokens of the sample; rows = forward rows of the sample; columns = positions of a row, equal
to the length unless the corruption says otherwise.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from mdmscale.diffusion.objective import Objective, position_weight
from mdmscale.diffusion.schedule import mask_rate


@dataclass(frozen=True, eq=False)
class Draw:
    """The inputs from which a corruption makes a sample's rows.

    t, importance_weights: float64 [num_t], the t and their 1 / p(t); num_t is `Corruption.num_t`.
    uniforms: float64 [length] in [0, 1), one per position. eligible: bool [length], positions that may be
    masked. share: the weight of one eligible token, see objective.token_share. eps: the smallest mask rate.
    extra_rates: float64 [length], added to the mask rates of ISAD's delimiters, 0 elsewhere.
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
    """The noised rows of one sample.

    masks: bool [rows, columns]. weights: float64 [rows, columns], the weight of a masked position (see
    objective.position_weight), 0 elsewhere. t_of: the index of the t that a column is masked at, int64
    [columns] or [rows, columns]; 0 if the sample has only one t. position_ids: int64 [columns], the sample
    position that each column shows, for rows that show a position more than once; None if column i shows
    position i. attention: bool [columns, columns], True at [i, j] if column i may attend to column j; None if
    all columns attend to all. is_causal: a "masked" token is a target that is predicted from the tokens
    before it. It stays as it is in the input, and the model must not attend to later columns.
    """

    masks: np.ndarray
    weights: np.ndarray
    t_of: np.ndarray | int = 0
    position_ids: np.ndarray | None = None
    attention: np.ndarray | None = None
    is_causal: bool = False


class Corruption(Protocol):
    """A way to corrupt samples.

    needs_symmetric_range: the corruption also masks at 1 - t, so the range of t must hold 1 - t with every t.
    takes_extra_rates: the corruption adds `Draw.extra_rates` to its mask rates, as ISAD needs.
    has_attention_pattern: its rows have an attention pattern of their own (`NoisedRows.attention`).
    """

    @property
    def num_rows(self) -> int: ...

    @property
    def needs_symmetric_range(self) -> bool: ...

    @property
    def takes_extra_rates(self) -> bool: ...

    @property
    def has_attention_pattern(self) -> bool: ...

    def num_t(self, length: int) -> int:
        """The number of t to draw for a sample of `length` tokens."""
        ...

    def corrupt(self, draw: Draw) -> NoisedRows:
        """The rows of one sample. The expected sum of their weighted cross-entropies is the objective."""
        ...


Level = TypeVar("Level", float, np.ndarray)


def same(t: Level) -> Level:
    return t


def reflected(t: Level) -> Level:
    return 1 - t


@dataclass(frozen=True)
class BernoulliMasks:
    """Rows whose positions are masked independently of each other. The two rows of a pair are antithetic.

    levels: for each row, the t at which it is masked, as a function of the sample's t.
    """

    levels: tuple[Callable[[Any], Any], ...]

    takes_extra_rates = True
    has_attention_pattern = False

    @property
    def num_rows(self) -> int:
        return len(self.levels)

    @property
    def needs_symmetric_range(self) -> bool:
        return reflected in self.levels

    def num_t(self, length: int) -> int:
        return 1

    def rates(self, draw: Draw) -> np.ndarray:
        """The mask probability of each position, float64 [rows, length]; 0 where it is not eligible.

        With ISAD (arXiv 2511.18159) it is min(r + delta, 1) for a delimiter, whose weight is divided by it.
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


CORRUPTIONS: dict[str, Corruption] = {
    "bernoulli": BernoulliMasks((same,)),
    "mirror": BernoulliMasks((same, same)),
    "complement": BernoulliMasks((same, reflected)),
}


@dataclass(frozen=True)
class NextTokens:
    """Autoregressive training: every eligible token is predicted from those before it. There is no noise."""

    num_rows = 1
    needs_symmetric_range = False
    takes_extra_rates = False
    has_attention_pattern = False

    def num_t(self, length: int) -> int:
        return 1  # as many as there are losses to report; it decides nothing

    def corrupt(self, draw: Draw) -> NoisedRows:
        targets = draw.eligible[None]  # [1, length]
        return NoisedRows(targets, np.where(targets, draw.share, 0.0), is_causal=True)


NEXT_TOKENS = NextTokens()


def corruption_of(objective: Objective, masking: str) -> Corruption:
    """The corruption of a run: what `masking` names, unless the run is autoregressive."""
    return NEXT_TOKENS if objective == "ar" else CORRUPTIONS[masking]
