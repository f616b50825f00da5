"""The variance of a method's batch: linear in the moments, with coefficients from the real t-sampler.

A batch has B samples of two rows each: two single draws, or one pair. A design is the t and the weights a of
all its draws. Given a design, the samples are independent. With q_i [K] the weights of sample i's draws by
cell of t, Q their sum and M [K, K] the products of the mean gradients,

    B Var(batch mean) = 1/B E_design sum_i (E_x ||sum_d a_d Y_d||^2 - q_i' M q_i)  +  1/B tr(M Cov_design(Q)).

Designs come from the project's own TSampler.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from mdmscale.analysis.variance.maskings import COMPLEMENT, MIRROR, SINGLE, row_times
from mdmscale.analysis.variance.moments import Moments
from mdmscale.diffusion.density import DensityTable
from mdmscale.diffusion.t_samplers import TSampler

MAX_DRAWS = 1 << 16


@dataclass(frozen=True)
class Method:
    """A way to use two rows for each sample."""

    name: str
    masking: str = SINGLE
    stratified: bool = False
    low_discrepancy: bool = False
    t_range: tuple[float, float] = (0.0, 1.0)
    target: str | None = None  # the target of P-POTS; None: uniform t

    @property
    def is_unbiased(self) -> bool:
        return self.t_range == (0.0, 1.0)

    @property
    def draws_per_sample(self) -> int:
        return 2 if self.masking == SINGLE else 1

    def sampler(self, batch_size: int, density: DensityTable) -> TSampler:
        """The t-sampler of this method's batches."""
        draws = batch_size * self.draws_per_sample
        return TSampler(
            seed=0,
            global_batch_size=draws,
            strata=draws if self.stratified else None,
            low_discrepancy=self.low_discrepancy,
            density=density if self.is_unbiased else DensityTable.uniform(*self.t_range),
        )


@dataclass(frozen=True, eq=False)
class Coefficients:
    """What a method multiplies the moments with.

    own: for E||Y||^2 of its draws, float64 [K]. within, mean: for the moments of the same names, [K, K].
    """

    masking: str
    own: np.ndarray
    within: np.ndarray
    mean: np.ndarray

    def variance(self, moments: Moments) -> float:
        """B times the variance of the batch mean (for gradients the trace of the covariance)."""
        second = moments.single if self.masking == SINGLE else moments.paired[self.masking]
        return float(
            self.own @ second + np.sum(self.within * moments.within) + np.sum(self.mean * moments.mean)
        )


def coefficients(method: Method, density: DensityTable, edges: np.ndarray, batch_size: int) -> Coefficients:
    """The coefficients of a method: averages over designs that its sampler draws."""
    sampler = method.sampler(batch_size, density)
    per_sample = method.draws_per_sample
    num_designs = max(64, MAX_DRAWS // sampler.global_batch_size)
    u = _uniforms(sampler.global_batch_size, sampler.strata, sampler.low_discrepancy, num_designs)
    t, weights = sampler.density.draw(u.reshape(num_designs, batch_size, per_sample))
    if not method.is_unbiased:  # w(t), a window
        weights = weights / (method.t_range[1] - method.t_range[0])
    weights = weights / per_sample
    cells = len(edges) - 1
    places = _cells_of(t, edges)

    own = np.bincount(places.ravel(), (weights**2).ravel(), minlength=cells) / (num_designs * batch_size)
    within = np.zeros((cells, cells))
    if per_sample == 2:
        np.add.at(within, (places[..., 0], places[..., 1]), weights[..., 0] * weights[..., 1])
        within = (within + within.T) / (num_designs * batch_size)

    by_cell = np.zeros((num_designs, batch_size, cells))  # q_i
    at = np.arange(num_designs)[:, None, None], np.arange(batch_size)[None, :, None]
    rows = row_times(method.masking, t)
    for row_t in rows:
        np.add.at(by_cell, (*at, _cells_of(row_t, edges)), weights / len(rows))
    if sampler.strata is None and not sampler.low_discrepancy:
        # Independent samples: B Cov(q) - B E[q q'] = -B E[q] E[q]', which avoids the noise of two estimates.
        mean_weights = by_cell.mean(axis=(0, 1))
        return Coefficients(method.masking, own, within, -np.outer(mean_weights, mean_weights))
    of_samples = np.einsum("dik,dil->kl", by_cell, by_cell) / num_designs
    of_batches = np.cov(by_cell.sum(axis=1), rowvar=False, bias=True)
    return Coefficients(method.masking, own, within, (of_batches - of_samples) / batch_size)


@lru_cache
def _uniforms(size: int, strata: int | None, low_discrepancy: bool, num_designs: int) -> np.ndarray:
    """The uniforms of whole batches from the project's own sampler; they do not depend on the density."""
    sampler = TSampler(0, size, strata, low_discrepancy)
    return np.array([sampler.uniform(index) for index in range(num_designs * size)])


def _cells_of(t: np.ndarray, edges: np.ndarray) -> np.ndarray:
    return np.clip(np.searchsorted(edges, t, side="right") - 1, 0, len(edges) - 2)


def compared_methods(clip: tuple[float, float]) -> list[Method]:
    """The methods that the report compares, standard first."""
    targets = ("paper", "loss", "gradient")
    return [
        Method("standard"),
        Method("clipped", t_range=clip),
        Method("stratified", stratified=True),
        Method("low_discrepancy", low_discrepancy=True),
        *(Method(f"p_pots_{target}", target=target) for target in targets),
        Method("stratified+p_pots_gradient", stratified=True, target="gradient"),
        Method("mirror", MIRROR),
        Method("mirror+stratified", MIRROR, stratified=True),
        *(Method(f"mirror+p_pots_{target}", MIRROR, target=target) for target in targets),
        Method("mirror+stratified+p_pots_gradient", MIRROR, stratified=True, target="gradient"),
        Method("complement", COMPLEMENT),
        Method("complement+p_pots_gradient", COMPLEMENT, target="gradient"),
        Method("complement+stratified+p_pots_gradient", COMPLEMENT, stratified=True, target="gradient"),
    ]
