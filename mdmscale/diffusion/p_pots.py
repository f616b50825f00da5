"""P-POTS: the t-sampler of least variance among the unbiased ones (arXiv 2511.18159).

With t ~ p the estimator l / p(t) stays unbiased, and its variance is int h(t) / p(t) dt - const for h(t) =
E[l^2 | t]. By Cauchy-Schwarz p*(t) is proportional to sqrt(h(t)). A probe measures h on a grid of t; a fit
turns it into a density.
"""

import logging
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from mdmscale.config import PPotsSection
from mdmscale.diffusion.density import DensityTable
from mdmscale.diffusion.uniforms import Stream, generator

logger = logging.getLogger(__name__)

# Fine near 0, where E||grad||^2 rises like 1/t.
TABLE_EDGES = np.array([0, 0.005, 0.01, 0.02, 0.04, 0.07, 0.1, 0.15, *np.arange(0.2, 1.05, 0.1)]).round(3)
EPR_CELLS = 1024
EPR_STARTS = 20


@dataclass(frozen=True, eq=False)
class ProbeStatistics:
    """Draws of the estimator on a grid of t.

    t: float64 [num_t]. losses and squared_norms (of the logit gradient): float64 [num_x0, num_t, num_masks].
    """

    t: np.ndarray
    losses: np.ndarray
    squared_norms: np.ndarray

    def second_moment(self, target: str) -> np.ndarray:
        """h(t) of the target, float64 [num_t].

        paper: (E_x g)^2 + E_x v, which drops Var_x g.
        loss: E[l^2 | t], whose p is the exact minimiser of the loss's variance.
        gradient: E[||grad||^2 | t] through the logit gradient, what the optimizer suffers from.
        """
        match target:
            case "paper":
                g = self.losses.mean(axis=2)  # [num_x0, num_t]
                v = self.losses.var(axis=2, ddof=1)
                return g.mean(axis=0) ** 2 + v.mean(axis=0)
            case "loss":
                return (self.losses**2).mean(axis=(0, 2))
            case "gradient":
                return self.squared_norms.mean(axis=(0, 2))
        raise ValueError(f"target = {target!r}; choose paper, loss or gradient")


def probe_edges(options: PPotsSection) -> np.ndarray:
    """Edges of the cells at whose midpoints a probe measures: equal for epr, fine near 0 for table."""
    return TABLE_EDGES if options.fit == "table" else np.linspace(0, 1, options.num_t + 1)


def fit_density(statistics: ProbeStatistics, options: PPotsSection) -> DensityTable:
    """The density that P-POTS samples t from.

    A statistic that is zero (nothing was masked in its draws) or not finite is interpolated, with a warning;
    where most are, the density is uniform.
    """
    h = statistics.second_moment(options.target)
    usable = np.isfinite(h) & (h > 0)
    if not usable.all():
        remedy = "are interpolated" if usable.mean() > 0.5 else "leave t uniform"
        logger.warning("P-POTS: %d of %d statistics, zero or not finite, %s", np.sum(~usable), len(h), remedy)
        if usable.mean() <= 0.5:
            return DensityTable.uniform()
        h = np.interp(statistics.t, statistics.t[usable], h[usable])
    w = _five_digits(np.sqrt(h / h.mean()))
    edges = probe_edges(options)
    if options.fit == "epr":
        parameters = fit_epr(statistics.t, w)
        edges = np.linspace(0, 1, EPR_CELLS + 1)
        w = epr_weight(parameters, (edges[:-1] + edges[1:]) / 2)
    return DensityTable.from_weights(edges, w, options.defensive)


def epr_weight(parameters: np.ndarray, t: np.ndarray) -> np.ndarray:
    """The paper's family: w = sqrt(g^2 + v), g = A exp(k t^m), v = a t^r + b (1 - t)^q.

    parameters: A, k, m, a, r, b, q. t: float64 [num_t]. Returns float64 [num_t].
    """
    A, k, m, a, r, b, q = parameters
    g = A * np.exp(k * t**m)
    return np.sqrt(g**2 + a * t**r + b * (1 - t) ** q)


def fit_epr(t: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Least KL(w || epr) on the grid t [num_t], both normalised; L-BFGS-B from seeded starts, the best kept.

    A softplus keeps A, k, a, b above 0 and m, r, q above 1.
    """
    target = w / w.sum()

    def divergence(raw: np.ndarray) -> float:
        model = epr_weight(_constrain(raw), t)
        return float(np.sum(target * np.log(target / (model / model.sum()))))

    starts = generator(0, Stream.PROBE, 0).normal(scale=1.5, size=(EPR_STARTS, 7))
    fits = [
        minimize(
            divergence,
            start,
            method="L-BFGS-B",
            bounds=[(-12, 12)] * 7,
            options={"ftol": 1e-14, "gtol": 1e-10},
        )
        for start in starts
    ]
    return _constrain(min(fits, key=lambda fit: fit.fun).x)


def _constrain(raw: np.ndarray) -> np.ndarray:
    return np.logaddexp(0, raw) + np.array([0, 0, 1, 0, 1, 0, 1])


def _five_digits(values: np.ndarray) -> np.ndarray:
    """Far finer than the statistics' own error, and it hides rounding that depends on the number of ranks."""
    return np.array([float(f"{value:.4e}") for value in values])
