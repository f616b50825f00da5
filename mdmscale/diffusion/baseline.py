"""The EMA control variate of the logged loss (arXiv 2511.18159).

The loss of a step depends strongly on the t that it happens to draw. b(t), an exponential moving average of
the losses seen near t, predicts this part of the loss, and the mean of b over t is known. So

    controlled = loss - c (mean over the batch of b(t) / p(t)  -  int b(t) dt)

has the same expectation as the loss and less variance. b and c come from earlier steps only, so the
expectation is exactly the same. b is an average of losses without 1 / p(t), but with the objective's w(t).
Training does not use it: subtracting a constant changes no gradient.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

# Steps before c is used. An estimate of c from fewer steps is mostly noise.
WARM_UP = 16


@dataclass(eq=False)
class EmaBaseline:
    """b(t), which is linear between the midpoints of cells of t, and the coefficient c.

    edges: float64 [cells + 1], of the cells; they cover every t that is drawn. decay: the factor of a cell's
    old average per new sample.
    """

    edges: np.ndarray
    decay: float
    sums: np.ndarray = field(init=False)  # float64 [cells], decayed sums of losses
    weights: np.ndarray = field(init=False)  # float64 [cells], decayed numbers of samples
    moments: np.ndarray = field(init=False)  # decayed sums of 1, loss, loss deviation x variate, variate^2
    num_steps: int = 0

    def __post_init__(self) -> None:
        self.sums, self.weights = np.zeros(len(self.edges) - 1), np.zeros(len(self.edges) - 1)
        self.moments = np.zeros(4)

    @property
    def averages(self) -> np.ndarray:
        """The average loss in each cell, float64 [cells]. A cell without samples gets the overall average."""
        overall = self.sums.sum() / self.weights.sum() if self.weights.any() else 0.0
        seen = self.weights > 0
        return np.where(seen, self.sums / np.where(seen, self.weights, 1.0), overall)

    def values(self, t: np.ndarray) -> np.ndarray:
        """b(t), float64 with the shape of t."""
        return np.interp(t, (self.edges[:-1] + self.edges[1:]) / 2, self.averages)

    def integral(self, low: float, high: float) -> float:
        """int b(t) dt from low to high. It is exact because b is linear between its knots."""
        middles = (self.edges[:-1] + self.edges[1:]) / 2
        knots = np.array([low, *middles[(middles > low) & (middles < high)], high])
        return float(np.trapezoid(self.values(knots), knots))

    @property
    def coefficient(self) -> float:
        """c: the regression of a step's loss on its variate; 0 during the first steps."""
        _, _, covariance, variance = self.moments
        return float(covariance / variance) if self.num_steps >= WARM_UP and variance > 0 else 0.0

    def control(self, loss: float, mean_value: float) -> float:
        """The controlled loss for t uniform in [0, 1]. `mean_value`: mean of b(t) / p(t) over drawn t."""
        return loss - self.coefficient * (mean_value - self.integral(0.0, 1.0))

    def control_step(self, loss: float, mean_value: float) -> float:
        """The controlled loss of a training step. `mean_value`: mean of b(t) / p(t) over its samples."""
        return loss - self.coefficient * self._variate(mean_value)

    def observe(self, loss: float, mean_value: float, counts: np.ndarray, cell_losses: np.ndarray) -> float:
        """Return the controlled loss of a training step, then update b and c with the step's samples.

        Args:
            loss: loss of the step.
            mean_value: mean of b(t) / p(t) over the step's samples.
            counts, cell_losses: float64 [cells], the step's samples in each cell and the sum of their losses.
        """
        controlled, variate = self.control_step(loss, mean_value), self._variate(mean_value)
        known = self.moments[1] / self.moments[0] if self.num_steps else loss
        self.moments *= self.decay
        self.moments += (1 - self.decay) * np.array([1, loss, (loss - known) * variate, variate**2])
        self.num_steps += 1
        kept = self.decay**counts
        means = cell_losses / np.maximum(counts, 1)
        self.sums = kept * self.sums + (1 - kept) * means
        self.weights = kept * self.weights + (1 - kept)
        return controlled

    def _variate(self, mean_value: float) -> float:
        return mean_value - self.integral(self.edges[0], self.edges[-1])

    def rescale(self, factors: np.ndarray) -> None:
        """Multiply b(t) by `factors` [cells], because from now on the losses there are multiplied by them."""
        self.sums = self.sums * factors

    def state_dict(self) -> dict[str, Any]:
        """The state as JSON values. Floats keep every bit."""
        names = ("edges", "sums", "weights", "moments")
        return {name: getattr(self, name).tolist() for name in names} | {"num_steps": self.num_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a state. A state with other cells is ignored: b then starts from scratch."""
        if state["edges"] != self.edges.tolist():
            return
        for name in ("sums", "weights", "moments"):
            setattr(self, name, np.array(state[name]))
        self.num_steps = state["num_steps"]
