"""The noise levels of one sample: its u, and the t that a density makes of them."""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Self

import numpy as np

from mdmscale.diffusion.density import DensityTable
from mdmscale.diffusion.loss_weight import ELBO, LossWeight


@dataclass(frozen=True, eq=False)
class Levels:
    """u: float64 [num_t] in [0, 1), uniform by themselves. density: p(t). loss_weight: w(t).

    Corruptions that mask each position at a rate use t. Those that mask an exact number of tokens use u and
    the density's distribution function.
    """

    u: np.ndarray
    density: DensityTable = field(default_factory=DensityTable.uniform)
    loss_weight: LossWeight = ELBO

    @classmethod
    def at(cls, t: float, num_t: int = 1) -> Self:
        """All levels at t in [0, 1], as a uniform draw would give them, without any weight."""
        return cls(np.full(num_t, min(t, np.nextafter(1, 0))))

    @cached_property
    def _drawn(self) -> tuple[np.ndarray, np.ndarray]:
        return self.density.draw(self.u)

    @property
    def t(self) -> np.ndarray:
        """float64 [num_t]."""
        return self._drawn[0]

    @property
    def importance_weights(self) -> np.ndarray:
        """1 / p(t), float64 [num_t]."""
        return self._drawn[1]

    def part(self, place: int) -> Self:
        """One of the levels."""
        return replace(self, u=self.u[place : place + 1])
