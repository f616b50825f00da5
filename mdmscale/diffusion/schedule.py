"""The schedule: the mask rate at t."""

from typing import TypeVar

import numpy as np

Level = TypeVar("Level", float, np.ndarray)


def mask_rate(t: Level, eps: float) -> Level:
    """r(t) = (1 - eps) t + eps, the probability that an eligible position is masked."""
    return (1 - eps) * t + eps
