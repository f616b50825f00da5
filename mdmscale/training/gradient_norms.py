"""The gradient norms of the last steps, and how much they vary."""

import math
from collections import deque
from collections.abc import Iterable, Sequence

import numpy as np

WINDOW = 100  # steps


class GradientNorms:
    """The norms of the last 100 steps, before clipping. Norms that are not finite are left out.

    They need no place in a checkpoint: metrics.jsonl has them, so a resumed run recalls them from there.
    """

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=WINDOW)

    def observe(self, norm: float, clipping: float) -> dict[str, float]:
        """Add the norm of a step. Returns its metrics.

        clipped: 1 if the step was scaled down to the norm `clipping` (0: no clipping), else 0.
        grad_norm_variation: standard deviation over mean of the norms in the window, from two norms on.
        """
        self.recall([norm])
        metrics: dict[str, float] = {"clipped": int(math.isfinite(norm) and norm > clipping > 0)}
        if len(self._recent) > 1:
            metrics["grad_norm_variation"] = variation(self._recent)
        return metrics

    def recall(self, norms: Iterable[float | None]) -> None:
        """Add the norms of earlier steps; None stands for one that is not finite."""
        self._recent.extend(norm for norm in norms if norm is not None and math.isfinite(norm))


def variation(norms: Sequence[float] | np.ndarray) -> float:
    """Standard deviation over mean of `norms`; 0 if all are 0."""
    mean = float(np.mean(norms))
    return float(np.std(norms)) / mean if mean else 0.0
