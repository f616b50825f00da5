"""P-POTS: the t-sampler of least variance among the unbiased ones (arXiv 2511.18159).

With t ~ p the estimator l / p(t) stays unbiased, and its variance is int h(t) / p(t) dt - const for h(t) =
E[l^2 | t]. By Cauchy-Schwarz p*(t) is proportional to sqrt(h(t)). A probe measures h on a grid of t, or
training shows it; a fit turns it into a density.
"""

import logging
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mdmscale.diffusion.density import DensityTable
from mdmscale.diffusion.epr import epr_weight, fit_epr

logger = logging.getLogger(__name__)

# Fine near 0, where E||grad||^2 rises like 1/t.
TABLE_EDGES = np.array([0, 0.005, 0.01, 0.02, 0.04, 0.07, 0.1, 0.15, *np.arange(0.2, 1.05, 0.1)]).round(3)
EPR_CELLS = 1024
FADING = 0.5  # what the sums that training shows keep at each refit, as the model moves on


class FitOptions(Protocol):
    """What a fit needs of the config's `diffusion.p_pots`."""

    @property
    def fit(self) -> str: ...
    @property
    def num_t(self) -> int: ...
    @property
    def defensive(self) -> float: ...


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


@dataclass(frozen=True, eq=False)
class CellSums:
    """What training shows of the estimator (without 1 / p) in each cell of t, summed over samples.

    values: float64 [4, cells]: number of samples, losses, squared losses, squared logit-gradient norms.
    """

    values: np.ndarray

    def second_moment(self, target: str) -> np.ndarray:
        """h(t) of target loss or gradient, float64 [cells]; NaN where no sample fell into the cell."""
        count, _, squared_losses, squared_norms = self.values
        with np.errstate(invalid="ignore", divide="ignore"):
            return {"loss": squared_losses, "gradient": squared_norms}[target] / count


def probe_edges(options: FitOptions) -> np.ndarray:
    """Edges of the cells of t that are measured: equal for epr, fine near 0 for table."""
    return TABLE_EDGES if options.fit == "table" else np.linspace(0, 1, options.num_t + 1)


def fit_density(h: np.ndarray, options: FitOptions) -> DensityTable:
    """The density that P-POTS samples t from, given h(t) [cells] in the cells of `probe_edges`.

    A value that is zero (nothing was masked in its draws) or not finite is interpolated, with a warning;
    where half of them or more are, or no finite density comes out, the density is uniform.
    """
    edges = probe_edges(options)
    t = (edges[:-1] + edges[1:]) / 2
    usable = np.isfinite(h) & (h > 0)
    if not usable.all():
        remedy = "are interpolated" if usable.mean() > 0.5 else "leave t uniform"
        logger.warning("P-POTS: %d of %d statistics, zero or not finite, %s", np.sum(~usable), len(h), remedy)
        if usable.mean() <= 0.5:
            return DensityTable.uniform()
        h = np.interp(t, t[usable], h[usable])
    w = _five_digits(np.sqrt(h / h.max()))
    if options.fit == "epr":
        edges = np.linspace(0, 1, EPR_CELLS + 1)
        w = epr_weight(fit_epr(t, w), (edges[:-1] + edges[1:]) / 2)
    density = DensityTable.from_weights(edges, w, options.defensive)
    if not np.isfinite(density.density).all():
        logger.warning("P-POTS: the fit did not end in a density; t stays uniform")
        return DensityTable.uniform()
    return density


def expected_gain(h: np.ndarray, density: DensityTable, options: FitOptions) -> float:
    """int h dt / int h / p dt: how many times less second moment than under uniform t, by the statistics."""
    edges = probe_edges(options)
    usable = np.isfinite(h)
    widths = np.diff(edges)[usable]
    weights = density.mean_weights(edges)[usable]
    return float(np.sum(h[usable] * widths) / np.sum(h[usable] * widths * weights))


def _five_digits(values: np.ndarray) -> np.ndarray:
    """Far finer than the statistics' own error, and it hides rounding that depends on the number of ranks."""
    return np.array([float(f"{value:.4e}") for value in values])
