"""EPR, the parametric family of p(t) in the P-POTS paper: exponential and power functions of t.

Legend: parameters = A, k, m, a, r, b, q of the family, float64 [7]; raw = the parameters before `constrain`,
    which may have any value; t: float64 [num_t].
"""

import numpy as np

from mdmscale.diffusion.uniforms import Stream, generator

NUM_STARTS = 20
LOWEST = np.array([0.0, 0, 1, 0, 1, 0, 1])  # lower bound of each parameter


def epr_weight(parameters: np.ndarray, t: np.ndarray) -> np.ndarray:
    """w = sqrt(g^2 + v) with g = A exp(k t^m) and v = a t^r + b (1 - t)^q (arXiv 2511.18159), [num_t]."""
    A, k, m, a, r, b, q = parameters
    g = A * np.exp(k * t**m)
    return np.sqrt(g**2 + a * t**r + b * (1 - t) ** q)


def log_weight_gradient(parameters: np.ndarray, t: np.ndarray) -> np.ndarray:
    """The derivatives of log w with respect to each parameter, [7, num_t]."""
    A, k, m, a, r, b, q = parameters
    tiny = np.finfo(float).tiny
    log_t, log_rest = np.log(np.maximum(t, tiny)), np.log(np.maximum(1 - t, tiny))
    power, rising, falling = t**m, t**r, (1 - t) ** q
    g2 = (A * np.exp(k * power)) ** 2
    squared = g2 + a * rising + b * falling  # w^2
    of_squared = (
        2 * g2 / A,
        2 * g2 * power,
        2 * g2 * k * power * log_t,
        rising,
        a * rising * log_t,
        falling,
        b * falling * log_rest,
    )
    return np.stack(of_squared) / (2 * squared)


def divergence(raw: np.ndarray, t: np.ndarray, target: np.ndarray) -> tuple[float, np.ndarray]:
    """KL(target || epr) on the grid, both normalised, and its gradient with respect to `raw`, [7].

    The gradient of KL is sum_t (p - target) d log w, where p = w / sum w.

    Args:
        target: float64 [num_t], sums to 1.
    """
    parameters = constrain(raw)
    w = epr_weight(parameters, t)
    p = w / w.sum()
    slope = 1 / (1 + np.exp(-raw))  # derivative of the softplus
    gradient = log_weight_gradient(parameters, t) @ (p - target) * slope
    return float(np.sum(target * np.log(target / p))), gradient


def fit_epr(t: np.ndarray, w: np.ndarray, seed: int = 0) -> np.ndarray:
    """The parameters of least KL(w || epr) on the grid: the best result of L-BFGS-B from seeded starts."""
    from scipy.optimize import minimize

    target = w / w.sum()
    starts = generator(seed, Stream.PROBE, 0).normal(scale=1.5, size=(NUM_STARTS, 7))
    options = {"ftol": 1e-14, "gtol": 1e-10}
    fits = [
        minimize(
            divergence, start, (t, target), "L-BFGS-B", jac=True, bounds=[(-12, 12)] * 7, options=options
        )
        for start in starts
    ]
    return constrain(min(fits, key=lambda fit: fit.fun).x)


def constrain(raw: np.ndarray) -> np.ndarray:
    """The parameters from `raw`. A softplus keeps A, k, a, b above 0 and m, r, q above 1."""
    return np.logaddexp(0, raw) + LOWEST
