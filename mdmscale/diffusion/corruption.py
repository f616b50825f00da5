"""Corruption: how a clean sample becomes noised rows with weights.

A corruption decides how many forward rows a sample takes, which positions are masked in each row, and the
weight of each masked position. It is a pure function of uniforms and noise levels. `CORRUPTIONS` lists the
choices of `diffusion.masking`. A new corruption is a new entry there; no other code depends on which one is
chosen (maskings.py). `NEXT_TOKENS` and `PaperScripts` take their place under other objectives.

Legend: length = tokens of the sample; rows = forward rows of the sample; columns = positions of a row, equal
to the length unless the corruption says otherwise.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mdmscale.diffusion.levels import Levels


@dataclass(frozen=True, eq=False)
class Draw:
    """The inputs from which a corruption makes a sample's rows.

    levels: the noise levels, of which there are `Corruption.num_t`. uniforms: float64 [num_uniforms, length]
    in [0, 1), for each position. eligible: bool [length], positions that may be masked. share: the weight of
    one eligible token, see objective.token_share. eps: the smallest mask rate. extra_rates: float64 [length],
    added to the mask rates of ISAD's delimiters, 0 elsewhere. by_count: the weight of a mask follows from its
    number of tokens instead of from t, see counts.py.
    """

    levels: Levels
    uniforms: np.ndarray
    eligible: np.ndarray
    share: float
    eps: float
    extra_rates: np.ndarray
    by_count: bool = False

    @cached_property
    def num_eligible(self) -> int:
        return int(self.eligible.sum())

    @property
    def length(self) -> int:
        return len(self.eligible)


@dataclass(frozen=True, eq=False)
class NoisedRows:
    """The noised rows of one sample.

    masks: bool [rows, columns]. weights: float64 [rows, columns], the weight of a masked position's
    cross-entropy in the sample's loss, with all factors included; 0 elsewhere. t_of: the index of the t that
    a column is masked at, int64 [columns], [rows, 1] or [rows, columns]; 0 if the sample has only one t.
    levels: those of the rows, if they are others than those of the draw. position_ids: int64 [columns], the
    sample position that each column shows, for rows that show a position more than once; None if column i
    shows position i. attention: bool [columns, columns], True at [i, j] if column i may attend to column j;
    None if all columns attend to all. is_causal: a "masked" token is a target that is predicted from the
    tokens before it. It stays as it is in the input, and the model must not attend to later columns.
    """

    masks: np.ndarray
    weights: np.ndarray
    t_of: np.ndarray | int = 0
    levels: Levels | None = None
    position_ids: np.ndarray | None = None
    attention: np.ndarray | None = None
    is_causal: bool = False


class Corruption(ABC):
    """A way to corrupt samples. The properties say what the rest of the package must know of it."""

    @property
    def num_rows(self) -> int:
        """Forward rows of a sample."""
        return 1

    @property
    def takes_rows(self) -> bool:
        """Whether `diffusion.rows` may choose `num_rows`."""
        return False

    @property
    def num_uniforms(self) -> int:
        """Uniforms that each position needs."""
        return 1

    @property
    def needs_symmetric_range(self) -> bool:
        """Whether it also masks at 1 - t, so that the range of t must hold 1 - t with every t."""
        return False

    @property
    def draws_counts(self) -> bool:
        """Whether it draws the number of masked tokens. Then p(t) must leave no number out."""
        return False

    @property
    def can_weigh_by_count(self) -> bool:
        """Whether it can weigh a mask by its number of tokens instead of by t, see `Draw.by_count`."""
        return False

    @property
    def is_coupled(self) -> bool:
        """Whether the rows of a sample depend on each other."""
        return False

    @property
    def takes_extra_rates(self) -> bool:
        """Whether it adds `Draw.extra_rates` to its mask rates, as ISAD needs."""
        return False

    @property
    def has_attention_pattern(self) -> bool:
        """Whether its rows have an attention pattern of their own, see `NoisedRows.attention`."""
        return False

    @property
    def loss_clamp(self) -> float | None:
        """The largest loss of a sample whose gradient is not dropped. None: no gradient is dropped."""
        return None

    @property
    def probed(self) -> "Corruption":
        """The corruption, with one t, whose statistics on a grid of t P-POTS is fitted to."""
        return self

    def num_t(self, length: int) -> int:
        """The number of t to draw for a sample of `length` tokens."""
        return 1

    @abstractmethod
    def corrupt(self, draw: Draw) -> NoisedRows:
        """The rows of one sample. The expected sum of their weighted cross-entropies is the objective."""


@dataclass(frozen=True)
class NextTokens(Corruption):
    """Autoregressive training: every eligible token is predicted from those before it. There is no noise."""

    def corrupt(self, draw: Draw) -> NoisedRows:
        targets = draw.eligible[None]  # [1, length]
        return NoisedRows(targets, np.where(targets, draw.share, 0.0), is_causal=True)


NEXT_TOKENS = NextTokens()
