"""The EMA control variate of the logged loss (arXiv 2511.18159): what t alone explains of a batch's loss.

The loss of a step is high or low with the t that happened to be drawn. b(t), an exponential average of the
losses seen near t, foretells by how much, and its mean over t is known, so

    controlled = loss - c (mean over the batch of b(t) / p(t)  -  int b(t) dt)

has the same expectation and less variance. b and c come from earlier steps alone, which keeps that exact.
Training never sees it: subtracting a constant changes no gradient.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

# Steps before c is used: from fewer it is noise.
WARM_UP = 16


@dataclass(eq=False)
class EmaBaseline:
    """b(t), linear between the midpoints of cells of t, and the coefficient c.

    edges: float64 [cells + 1]. decay: what one more sample in a cell leaves of its average.
    """

    edges: np.ndarray
    t_range: tuple[float, float]
    decay: float
    sums: np.ndarray = field(init=False)  # float64 [cells], decayed sums of losses
    weights: np.ndarray = field(init=False)  # float64 [cells], of the samples in them
    moments: np.ndarray = field(init=False)  # decayed: 1, loss, loss deviation x variate, variate^2
    num_steps: int = 0

    def __post_init__(self) -> None:
        self.sums, self.weights = np.zeros(len(self.edges) - 1), np.zeros(len(self.edges) - 1)
        self.moments = np.zeros(4)

    @property
    def averages(self) -> np.ndarray:
        """The average loss in each cell, float64 [cells]; that of all cells where one has seen no sample."""
        overall = self.sums.sum() / self.weights.sum() if self.weights.any() else 0.0
        seen = self.weights > 0
        return np.where(seen, self.sums / np.where(seen, self.weights, 1.0), overall)

    def values(self, t: np.ndarray) -> np.ndarray:
        """b(t), float64 of the shape of t."""
        return np.interp(t, (self.edges[:-1] + self.edges[1:]) / 2, self.averages)

    def integral(self, low: float, high: float) -> float:
        """The mean of b over t in [low, high], exactly: b is linear between its knots."""
        middles = (self.edges[:-1] + self.edges[1:]) / 2
        knots = np.array([low, *middles[(middles > low) & (middles < high)], high])
        return float(np.trapezoid(self.values(knots), knots) / (high - low))

    @property
    def coefficient(self) -> float:
        """c: the regression of a step's loss on its variate; 0 during the first steps."""
        _, _, covariance, variance = self.moments
        return float(covariance / variance) if self.num_steps >= WARM_UP and variance > 0 else 0.0

    def control(self, loss: float, mean_value: float) -> float:
        """A loss over t uniform in [0, 1], whose draws of t had `mean_value` as their mean of b(t) / p(t)."""
        return loss - self.coefficient * (mean_value - self.integral(0.0, 1.0))

    def observe(self, loss: float, mean_value: float, counts: np.ndarray, cell_losses: np.ndarray) -> float:
        """The controlled loss of a training step; then the step's samples enter b and c.

        Args:
            loss: the step's.
            mean_value: mean over its samples of b(t) / p(t).
            counts, cell_losses: float64 [cells], its samples in each cell and the sum of their losses.
        """
        variate = mean_value - self.integral(*self.t_range)
        controlled = loss - self.coefficient * variate
        known = self.moments[1] / self.moments[0] if self.num_steps else loss
        self.moments *= self.decay
        self.moments += (1 - self.decay) * np.array([1, loss, (loss - known) * variate, variate**2])
        self.num_steps += 1
        kept = self.decay**counts
        means = cell_losses / np.maximum(counts, 1)
        self.sums = kept * self.sums + (1 - kept) * means
        self.weights = kept * self.weights + (1 - kept)
        return controlled

    def state_dict(self) -> dict[str, Any]:
        """JSON form; floats survive it bit for bit."""
        names = ("edges", "sums", "weights", "moments")
        return {name: getattr(self, name).tolist() for name in names} | {"num_steps": self.num_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state; one of other cells is left alone, and b begins anew."""
        if state["edges"] != self.edges.tolist():
            return
        for name in ("sums", "weights", "moments"):
            setattr(self, name, np.array(state[name]))
        self.num_steps = state["num_steps"]
