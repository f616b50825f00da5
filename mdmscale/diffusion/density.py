"""A piecewise-constant density over t, with the exact inverse of its distribution function."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np


@dataclass(frozen=True, eq=False)
class DensityTable:
    """A piecewise-constant density p(t).

    The same table gives both t and its weight 1 / p(t), so the estimator l / p(t) is unbiased.

    edges: float64 [cells + 1], increasing within [0, 1]. Outside them p(t) is 0.
    density: float64 [cells], positive, with integral 1.
    """

    edges: np.ndarray
    density: np.ndarray

    @classmethod
    def from_weights(cls, edges: np.ndarray, weights: np.ndarray, defensive: float) -> Self:
        """Normalise `weights` [cells] to a density and mix in a share `defensive` of the uniform density.

        The mixture keeps every importance weight 1 / p at or below (last - first edge) / defensive.
        """
        density = weights / np.sum(weights * np.diff(edges))
        return cls(edges, (1 - defensive) * density + defensive / (edges[-1] - edges[0]))

    @classmethod
    def uniform(cls, low: float = 0.0, high: float = 1.0) -> Self:
        return cls(np.array([low, high]), np.array([1 / (high - low)]))

    @cached_property
    def cumulative(self) -> np.ndarray:
        """The distribution function at the edges, float64 [cells + 1]."""
        at_edges = np.concatenate([[0.0], np.cumsum(self.density * np.diff(self.edges))])
        return at_edges / at_edges[-1]

    def draw(self, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """t = F^-1(u) for u in [0, 1), and its importance weight 1 / p(t), both with the shape of u."""
        cell = np.searchsorted(self.cumulative, u, side="right") - 1
        share = (u - self.cumulative[cell]) / (self.cumulative[cell + 1] - self.cumulative[cell])
        t = self.edges[cell] + share * (self.edges[cell + 1] - self.edges[cell])
        return t, 1.0 / self.density[cell]

    def distribution(self, t: np.ndarray) -> np.ndarray:
        """The distribution function F(t), with the shape of t."""
        return np.interp(t, self.edges, self.cumulative)

    @cached_property
    def reflected(self) -> "DensityTable":
        """The density of 1 - t."""
        return DensityTable(1 - self.edges[::-1], self.density[::-1])

    def mean_weights(self, edges: np.ndarray) -> np.ndarray:
        """The mean of 1 / p in each of the cells that `edges` [cells + 1] bound, float64 [cells]."""
        # The integral of 1 / p from 0 to each edge.
        integral = np.concatenate([[0.0], np.cumsum(np.diff(self.edges) / self.density)])
        return np.diff(np.interp(edges, self.edges, integral)) / np.diff(edges)

    def to_state(self) -> dict[str, Any]:
        """The density as JSON values. Floats keep every bit."""
        return {"edges": self.edges.tolist(), "density": self.density.tolist()}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        return cls(np.array(state["edges"]), np.array(state["density"]))
