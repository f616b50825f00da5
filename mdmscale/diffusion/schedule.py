"""The schedule: the mask rate at t."""


def mask_rate(t: float, eps: float) -> float:
    """r(t) = (1 - eps) t + eps, the probability that an eligible position is masked."""
    return (1 - eps) * t + eps
