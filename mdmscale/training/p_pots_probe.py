"""The P-POTS probe: the training estimator, measured on a grid of t."""

import numpy as np

from mdmscale.config.diffusion import PPotsSection
from mdmscale.data.collate import Collator
from mdmscale.data.source import SampleSource
from mdmscale.diffusion.density import DensityTable
from mdmscale.diffusion.levels import Levels
from mdmscale.diffusion.loss_weight import LossWeight
from mdmscale.diffusion.noise import Noise, corrupted
from mdmscale.diffusion.p_pots import ProbeStatistics
from mdmscale.diffusion.uniforms import Stream, mask_uniforms
from mdmscale.parallel.ranks import Ranks
from mdmscale.training.passes import ForwardModel, forward_sums, share_out


def measure_p_pots(
    engine: ForwardModel,
    source: SampleSource,
    noise: Noise,
    options: PPotsSection,
    edges: np.ndarray,
    collate: Collator,
    first_index: int,
    loss_weight: LossWeight,
    seed: int,
    ranks: Ranks,
) -> ProbeStatistics:
    """Draw the training estimator at the middles of the cells of t that `edges` [cells + 1] bound.

    Antithetic pairs are drawn as pairs; of rows that have a t of their own each, one is drawn. t is weighed
    as a uniform draw within the edges.

    One forward takes one sample at one t under `num_masks` draws, so its rows do not depend on the number of
    ranks. The samples are the next `num_x0` that training sees, starting at `first_index`.
    """
    t = (edges[:-1] + edges[1:]) / 2
    uniform = DensityTable.uniform(edges[0], edges[-1])
    corruption = noise.corruption.probed
    indices = range(first_index, first_index + options.num_x0)
    samples = [noise.widened(source.train_sample(index), seed, index) for index in indices]

    def measure(item: int) -> np.ndarray:
        sample_place, t_place = divmod(item, len(t))
        sample = samples[sample_place]
        draws = range(item * options.num_masks, (item + 1) * options.num_masks)
        uniforms = [mask_uniforms(seed, draw, len(sample.token_ids), Stream.PROBE) for draw in draws]
        u = np.full(corruption.num_t(len(sample.token_ids)), uniform.distribution(t[t_place]))
        levels = Levels(u, uniform, loss_weight)
        noised = [corrupted(sample, levels, each, noise, corruption) for each in uniforms]
        sums = forward_sums(engine, collate(noised), ranks.device)  # [2, num_masks * num_t]
        return sums.reshape(2, options.num_masks, -1).sum(axis=2)

    results = share_out(measure, options.num_x0 * len(t), (2, options.num_masks), ranks)
    grid = results.reshape(options.num_x0, len(t), 2, options.num_masks)
    losses = np.minimum(grid[:, :, 0], np.inf if corruption.loss_clamp is None else corruption.loss_clamp)
    return ProbeStatistics(t, losses, squared_norms=grid[:, :, 1])
