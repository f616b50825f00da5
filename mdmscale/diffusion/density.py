"""A density over t in [0, 1] as a table of cells, with the exact inverse of its distribution function."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np


@dataclass(frozen=True, eq=False)
class DensityTable:
    """A piecewise-constant density. This one object both samples and weighs, so l / p(t) is unbiased.

    edges: float64 [cells + 1], rising from 0 to 1.
    density: float64 [cells], positive, integrating to 1.
    """

    edges: np.ndarray
    density: np.ndarray

    @classmethod
    def from_weights(cls, edges: np.ndarray, weights: np.ndarray, defensive: float) -> Self:
        """Normalise `weights` [cells] to a density and mix in a share `defensive` of the uniform one.

        After the mixture no importance weight 1 / p exceeds 1 / defensive.
        """
        density = weights / np.sum(weights * np.diff(edges))
        return cls(edges, (1 - defensive) * density + defensive)

    @classmethod
    def uniform(cls) -> Self:
        return cls(np.array([0.0, 1.0]), np.array([1.0]))

    def draw(self, u: float) -> tuple[float, float]:
        """t = F^-1(u) for u in [0, 1), and its importance weight 1 / p(t)."""
        cumulative = np.concatenate([[0.0], np.cumsum(self.density * np.diff(self.edges))])  # [cells + 1]
        cumulative /= cumulative[-1]
        cell = int(np.searchsorted(cumulative, u, side="right")) - 1
        share = (u - cumulative[cell]) / (cumulative[cell + 1] - cumulative[cell])
        t = self.edges[cell] + share * (self.edges[cell + 1] - self.edges[cell])
        return float(t), float(1.0 / self.density[cell])

    def mean_weights(self, edges: np.ndarray) -> np.ndarray:
        """The mean of 1 / p over each of the cells between `edges` [cells + 1], float64 [cells]."""
        integral = np.concatenate(
            [[0.0], np.cumsum(np.diff(self.edges) / self.density)]
        )  # of 1 / p up to an edge
        return np.diff(np.interp(edges, self.edges, integral)) / np.diff(edges)

    def to_state(self) -> dict[str, Any]:
        """JSON form; floats survive it bit for bit."""
        return {"edges": self.edges.tolist(), "density": self.density.tolist()}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        return cls(np.array(state["edges"]), np.array(state["density"]))
