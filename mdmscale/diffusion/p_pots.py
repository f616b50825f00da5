"""P-POTS: the unbiased t-sampler with the least variance (arXiv 2511.18159).

With t ~ p the estimator l / p(t) is unbiased. Its variance is int h(t) / p(t) dt - const, where h(t) =
E[l^2 | t]. By Cauchy-Schwarz the best density p*(t) is proportional to sqrt(h(t)). h is measured by a probe
on a grid of t, or from the losses of training. A fit then turns it into a density. All losses include the
weight w(t) of the objective.

Where masks are weighed by their counts (counts.py), the weight of a mask depends on p as well. Then sqrt(h),
measured under p, is p times the factor by which the best density differs from it. For exact counts a fit
finds the best q at once, and for Bernoulli masks refits approach the best p.
"""

import logging
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mdmscale.diffusion.density import DensityTable
from mdmscale.diffusion.epr import epr_weight, fit_epr

logger = logging.getLogger(__name__)

# The cells are fine near 0, where E||grad||^2 grows like 1/t.
TABLE_EDGES = np.array([0, 0.005, 0.01, 0.02, 0.04, 0.07, 0.1, 0.15, *np.arange(0.2, 1.05, 0.1)]).round(3)
EPR_CELLS = 1024
NEGLIGIBLE = 1e-12  # of the largest statistic
FADING = 0.5  # factor of the sums from training after each refit, because the model changes


class FitOptions(Protocol):
    """The options of the config's `diffusion.p_pots` that a fit uses."""

    @property
    def fit(self) -> str: ...
    @property
    def num_t(self) -> int: ...
    @property
    def defensive(self) -> float: ...


@dataclass(frozen=True, eq=False)
class ProbeStatistics:
    """Draws of the estimator on a grid of t.

    t: float64 [num_t]. losses: float64 [num_x0, num_t, num_masks]. squared_norms: the squared norms of the
    logit gradient, of the same shape.
    """

    t: np.ndarray
    losses: np.ndarray
    squared_norms: np.ndarray

    def second_moment(self, target: str) -> np.ndarray:
        """h(t) of the target, float64 [num_t].

        paper: (E_x g)^2 + E_x v, which leaves out Var_x g.
        loss: E[l^2 | t]. The p(t) fitted to it minimises the variance of the loss exactly.
        gradient: E[||grad||^2 | t] of the logit gradient. Gradient noise is what disturbs the optimizer.
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
    """Sums over training samples of the estimator without its 1 / p, in each cell of t.

    values: float64 [4, cells]: number of samples, losses, squared losses, squared logit-gradient norms.
    """

    values: np.ndarray

    def second_moment(self, target: str) -> np.ndarray:
        """h(t) of the target loss or gradient, float64 [cells]; NaN for a cell without samples."""
        count, _, squared_losses, squared_norms = self.values
        with np.errstate(invalid="ignore", divide="ignore"):
            return {"loss": squared_losses, "gradient": squared_norms}[target] / count


def probe_edges(options: FitOptions, t_range: tuple[float, float] = (0.0, 1.0)) -> np.ndarray:
    """Edges of the cells of t in which h is measured: equal cells for epr, finer near 0 for table."""
    low, high = t_range
    if options.fit == "epr":
        return np.linspace(low, high, options.num_t + 1)
    inner = [edge for edge in TABLE_EDGES if low < edge < high]
    return np.array([low, *inner, high])


def fit_density(
    h: np.ndarray,
    edges: np.ndarray,
    options: FitOptions,
    defensive: float | None = None,
    masks_are_empty: bool = True,
) -> DensityTable:
    """The density from which P-POTS samples t, fitted to h(t) [cells] in the cells of `edges` [cells + 1].

    A value of h is unusable if it is not finite, or zero because none of its draws masked anything. Unusable
    values are interpolated, with a warning. If half of the values or more are unusable, or the fitted density
    is not finite, the result is the uniform density.

    Args:
        defensive: replaces that of the options.
        masks_are_empty: whether a mask may hold no token. If not, a zero is no accident: w(t) is 0 there.
    """
    uniform = DensityTable.uniform(edges[0], edges[-1])
    t = (edges[:-1] + edges[1:]) / 2
    if not masks_are_empty:
        h = np.maximum(h, NEGLIGIBLE * np.nanmax(h, initial=0))  # keeps NaN
    usable = np.isfinite(h) & (h > 0)
    if not usable.all():
        remedy = "they are interpolated" if usable.mean() > 0.5 else "t stays uniform"
        logger.warning(
            "P-POTS: %d of %d statistics are zero or not finite; %s", np.sum(~usable), len(h), remedy
        )
        if usable.mean() <= 0.5:
            return uniform
        h = np.interp(t, t[usable], h[usable])
    w = _five_digits(np.sqrt(h / h.max()))
    if options.fit == "epr":
        edges = np.linspace(edges[0], edges[-1], EPR_CELLS + 1)
        w = epr_weight(fit_epr(t, w), (edges[:-1] + edges[1:]) / 2)
    share = options.defensive if defensive is None else defensive
    density = DensityTable.from_weights(edges, w, share)
    if not np.isfinite(density.density).all():
        logger.warning("P-POTS: the fitted density is not finite; t stays uniform")
        return uniform
    return density


def expected_gain(h: np.ndarray, edges: np.ndarray, density: DensityTable) -> float:
    """The second moment under uniform t divided by that under p, from h(t) in the cells of `edges`."""
    usable = np.isfinite(h)
    widths = np.diff(edges)[usable]
    weights = density.mean_weights(edges)[usable] / (edges[-1] - edges[0])
    return float(np.sum(h[usable] * widths) / np.sum(h[usable] * widths * weights))


def _five_digits(values: np.ndarray) -> np.ndarray:
    """Round to five digits, which hides rounding differences between numbers of ranks.

    The error of the statistics is far larger.
    """
    return np.array([float(f"{value:.4e}") for value in values])
