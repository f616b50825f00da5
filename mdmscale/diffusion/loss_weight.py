"""w(t): what the objective weighs, apart from p(t), which says how often t is drawn.

With w the objective is int w(t) E_m l(x, t, m) dt. w = 1 is the likelihood bound ("elbo"). Every other w is
another objective and bounds no likelihood. All have the integral 1, so losses stay means in nats per token.
Changing p(t) changes the variance of the gradient only; changing w(t) changes what is learnt.
"""

import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from mdmscale.diffusion.schedule import mask_rate

BELL_CELLS = 64


@dataclass(frozen=True, eq=False)
class LossWeight:
    """w(t) = values(t) r(t)^power, with piecewise-constant values.

    edges: float64 [cells + 1], increasing within [0, 1]; outside them w(t) is 0. values: float64 [cells].
    power: 0, or 1 for a weight that cancels the 1 / r of the objective.
    """

    edges: np.ndarray
    values: np.ndarray
    power: int = 0

    @classmethod
    def elbo(cls) -> Self:
        """w = 1: the likelihood bound."""
        return cls(np.array([0.0, 1.0]), np.array([1.0]))

    @classmethod
    def uniform(cls, eps: float) -> Self:
        """w proportional to r(t): every masked token has the same weight (simple cross-entropy)."""
        return cls(np.array([0.0, 1.0]), np.array([2 / (1 + eps)]), power=1)

    @classmethod
    def window(cls, low: float, high: float) -> Self:
        """w constant for t in [low, high] and 0 elsewhere."""
        return cls(np.array([low, high]), np.array([1 / (high - low)]))

    @classmethod
    def bell(cls, mean: float, std: float) -> Self:
        """A normal density cut to [0, 1], as its mean in each of BELL_CELLS equal cells."""
        edges = np.linspace(0, 1, BELL_CELLS + 1)
        below = np.array([math.erf((edge - mean) / (std * math.sqrt(2))) for edge in edges])
        return cls(edges, np.diff(below) / (below[-1] - below[0]) * BELL_CELLS)

    @classmethod
    def against(cls, edges: np.ndarray, losses: np.ndarray) -> Self:
        """w inversely proportional to `losses` [cells]: each t then contributes as much as any other.

        It is the optimum of the learned uncertainty u(t) in E[w l], w = exp(-u), with the penalty E[u]
        (Kendall et al., arXiv 1705.07115; Karras et al., arXiv 2312.02696, for noise levels).
        """
        values = 1 / losses
        return cls(edges, values / np.sum(values * np.diff(edges)))

    @property
    def support(self) -> tuple[float, float]:
        return float(self.edges[0]), float(self.edges[-1])

    def at(self, t: np.ndarray, eps: float) -> np.ndarray:
        """w(t), with the shape of t."""
        cell = np.clip(np.searchsorted(self.edges, t, side="right") - 1, 0, len(self.values) - 1)
        inside = (t >= self.edges[0]) & (t <= self.edges[-1])
        return np.where(inside, self.values[cell], 0.0) * mask_rate(t, eps) ** self.power

    def to_state(self) -> dict[str, Any]:
        """The weight as JSON values. Floats keep every bit."""
        return {"edges": self.edges.tolist(), "values": self.values.tolist(), "power": self.power}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        return cls(np.array(state["edges"]), np.array(state["values"]), state["power"])


ELBO = LossWeight.elbo()
