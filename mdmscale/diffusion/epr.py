"""The parametric family that P-POTS fits p(t) in: the paper's EPR, exponential and power functions of t."""

import numpy as np
from scipy.optimize import minimize

from mdmscale.diffusion.uniforms import Stream, generator

NUM_STARTS = 20


def epr_weight(parameters: np.ndarray, t: np.ndarray) -> np.ndarray:
    """w = sqrt(g^2 + v) with g = A exp(k t^m) and v = a t^r + b (1 - t)^q (arXiv 2511.18159).

    parameters: A, k, m, a, r, b, q. t: float64 [num_t]. Returns float64 [num_t].
    """
    A, k, m, a, r, b, q = parameters
    g = A * np.exp(k * t**m)
    return np.sqrt(g**2 + a * t**r + b * (1 - t) ** q)


def fit_epr(t: np.ndarray, w: np.ndarray, seed: int = 0) -> np.ndarray:
    """The parameters of least KL(w || epr) on the grid t [num_t], both normalised.

    L-BFGS-B from seeded starts, the best kept. A softplus keeps A, k, a, b above 0 and m, r, q above 1.
    """
    target = w / w.sum()

    def divergence(raw: np.ndarray) -> float:
        model = epr_weight(_constrain(raw), t)
        return float(np.sum(target * np.log(target / (model / model.sum()))))

    starts = generator(seed, Stream.PROBE, 0).normal(scale=1.5, size=(NUM_STARTS, 7))
    options = {"ftol": 1e-14, "gtol": 1e-10}
    fits = [
        minimize(divergence, start, method="L-BFGS-B", bounds=[(-12, 12)] * 7, options=options)
        for start in starts
    ]
    return _constrain(min(fits, key=lambda fit: fit.fun).x)


def _constrain(raw: np.ndarray) -> np.ndarray:
    return np.logaddexp(0, raw) + np.array([0, 0, 1, 0, 1, 0, 1])
