"""Draws t for samples: uniforms, which may be spread over a batch, go through the inverse of a density."""

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from mdmscale.diffusion.density import DensityTable
from mdmscale.diffusion.levels import Levels
from mdmscale.diffusion.loss_weight import ELBO, LossWeight
from mdmscale.diffusion.uniforms import Stream, generator, uniform_t


@dataclass(frozen=True)
class TSampler:
    """Draws the noise levels of a sample as a pure function of its index: u, and t = F^-1(u) with 1 / p(t).

    With `strata` = K the u of a global batch of B fall into K equal strata (MDLM, arXiv 2406.07524; StraTS,
    arXiv 2511.18159): u_j = (stratum(j) + xi_j) / K. Each stratum gets floor(B / K) samples. The other B mod
    K go to different strata, which each step draws anew, as it does the order of the samples. So the u of a
    sample by itself stays uniform for every K. With `low_discrepancy` the u form a grid with a common random
    shift (VDM, arXiv 2107.00630): u_j = (u_0 + place(j) / B) mod 1. A sample's step and slot follow from its
    index, so ranks need not communicate.

    loss_weight: w(t), which the levels carry to where masks are weighed.
    """

    seed: int
    global_batch_size: int
    strata: int | None = None
    low_discrepancy: bool = False
    density: DensityTable = field(default_factory=DensityTable.uniform)
    loss_weight: LossWeight = ELBO

    def uniform(self, index: int) -> float:
        """u in [0, 1) of sample `index`. Its marginal is uniform, however u is spread over the batch."""
        if self.strata is None and not self.low_discrepancy:
            return uniform_t(self.seed, index)
        step, slot = divmod(index, self.global_batch_size)
        if self.strata is None:
            places, shift = _step_grid(self.seed, step, self.global_batch_size)
            return float((shift + places[slot] / self.global_batch_size) % 1.0)
        stratum = _step_strata(self.seed, step, self.global_batch_size, self.strata)[slot]
        return float((stratum + uniform_t(self.seed, index)) / self.strata)

    def draw(self, index: int, num_t: int = 1) -> Levels:
        """The noise levels of sample `index`.

        The first is spread over the batch. Some corruptions mask each part of a sample, or each of its rows,
        at its own t; the further levels for these are independent.
        """
        others = generator(self.seed, Stream.T, index).random(num_t)[1:]
        return Levels(np.array([self.uniform(index), *others]), self.density, self.loss_weight)


@lru_cache(maxsize=4)
def _step_grid(seed: int, step: int, size: int) -> tuple[np.ndarray, float]:
    """The places of a step's samples in the batch [size], and the common random shift of all places."""
    draws = generator(seed, Stream.STRATA, step)
    return draws.permutation(size), float(draws.random())


@lru_cache(maxsize=4)
def _step_strata(seed: int, step: int, size: int, strata: int) -> np.ndarray:
    """The stratum of each of a step's samples, int64 [size]."""
    draws = generator(seed, Stream.STRATA, step)
    places = draws.permutation(size)  # [size]
    if size % strata == 0:
        return places * strata // size
    equal = np.repeat(np.arange(strata), size // strata)  # floor(size / strata) samples each
    return np.concatenate([equal, draws.permutation(strata)[: size % strata]])[places]
