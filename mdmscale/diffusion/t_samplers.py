"""Mask rates of samples: uniform or stratified uniforms through the inverse of any density over t."""

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from mdmscale.config import RunConfig
from mdmscale.diffusion.density import DensityTable
from mdmscale.diffusion.uniforms import Stream, generator, uniform_t


@dataclass(frozen=True)
class TSampler:
    """Draws (t, 1 / p(t)) for a sample as a pure function of its index.

    With `strata` = K the samples of a global batch fall into K equal strata of u, each hit equally often
    (StraTS, arXiv 2511.18159): u_j = (stratum(j) + xi_j) / K with the strata permuted by a draw of the step.
    A sample's step and slot follow from its index, so ranks need no message.
    """

    seed: int
    global_batch_size: int
    strata: int | None = None
    density: DensityTable = field(default_factory=DensityTable.uniform)

    def uniform(self, index: int) -> float:
        """u in [0, 1) of sample `index`; marginally uniform with or without strata."""
        xi = uniform_t(self.seed, index)
        if self.strata is None:
            return xi
        step, slot = divmod(index, self.global_batch_size)
        place = _permutation(self.seed, step, self.global_batch_size)[slot]
        stratum = place * self.strata // self.global_batch_size
        return float((stratum + xi) / self.strata)

    def draw(self, index: int) -> tuple[float, float]:
        """t in [0, 1) of sample `index` and its importance weight 1 / p(t)."""
        return self.density.draw(self.uniform(index))


def make_t_sampler(config: RunConfig) -> TSampler:
    """The t-sampler of a run. P-POTS starts from the uniform density; a probe replaces it."""
    batch = config.train.global_batch_size
    default_strata = batch if config.diffusion.t_sampler == "stratified" else None
    return TSampler(config.run.seed, batch, config.diffusion.strata or default_strata)


@lru_cache(maxsize=4)
def _permutation(seed: int, step: int, size: int) -> np.ndarray:
    return generator(seed, Stream.STRATA, step).permutation(size)
