"""The P-POTS probe: the training estimator, measured on a grid of t."""

import numpy as np

from mdmscale.config.diffusion import PPotsSection
from mdmscale.data.collate import Collator
from mdmscale.data.source import SampleSource
from mdmscale.diffusion.density import DensityTable
from mdmscale.diffusion.levels import Levels
from mdmscale.diffusion.loss_weight import LossWeight
from mdmscale.diffusion.noise import Noise, NoisedSample, corrupted
from mdmscale.diffusion.p_pots import ProbeStatistics
from mdmscale.diffusion.sample import Sample
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

    One forward takes one sample at one t under `num_masks` draws, so its rows do not depend on the number of
    ranks. The samples are the next `num_x0` that training sees, starting at `first_index`.
    """
    t = (edges[:-1] + edges[1:]) / 2
    indices = range(first_index, first_index + options.num_x0)
    samples = [noise.widened(source.train_sample(index), seed, index) for index in indices]

    def measure(item: int) -> np.ndarray:
        sample_place, t_place = divmod(item, len(t))
        sample = samples[sample_place]
        draws = range(item * options.num_masks, (item + 1) * options.num_masks)
        noised = [probe_noise(sample, t[t_place], edges, draw, loss_weight, seed, noise) for draw in draws]
        sums = forward_sums(engine, collate(noised), ranks.device)  # [2, num_masks * num_t]
        return sums.reshape(2, options.num_masks, -1).sum(axis=2)

    results = share_out(measure, options.num_x0 * len(t), (2, options.num_masks), ranks)
    grid = results.reshape(options.num_x0, len(t), 2, options.num_masks)
    clamp = noise.corruption.probed.loss_clamp
    losses = np.minimum(grid[:, :, 0], np.inf if clamp is None else clamp)
    return ProbeStatistics(t, losses, squared_norms=grid[:, :, 1])


def probe_noise(
    sample: Sample, t: float, edges: np.ndarray, draw: int, loss_weight: LossWeight, seed: int, noise: Noise
) -> NoisedSample:
    """Draw number `draw` of a probe of the cells that `edges` bound: a sample masked at t.

    Antithetic pairs are drawn as pairs; of rows that have a t of their own each, one is drawn. t is weighed
    as a uniform draw within the edges.
    """
    corruption, length = noise.corruption.probed, len(sample.token_ids)
    uniform = DensityTable.uniform(edges[0], edges[-1])
    u = np.full(corruption.num_t(length), uniform.distribution(np.asarray(t)))
    uniforms = mask_uniforms(seed, draw, length, Stream.PROBE)
    return corrupted(sample, Levels(u, uniform, loss_weight), uniforms, noise, corruption)
