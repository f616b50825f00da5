"""The P-POTS probe: the training estimator, measured on a grid of t."""

import numpy as np

from mdmscale.config.diffusion import PPotsSection
from mdmscale.data.collate import Collator
from mdmscale.data.source import SampleSource
from mdmscale.diffusion.noise import Noise, noise_sample
from mdmscale.diffusion.p_pots import ProbeStatistics, probe_edges
from mdmscale.diffusion.uniforms import Stream, mask_uniforms
from mdmscale.parallel.ranks import Ranks
from mdmscale.training.passes import ForwardModel, forward_sums, share_out


def measure_p_pots(
    engine: ForwardModel,
    source: SampleSource,
    noise: Noise,
    options: PPotsSection,
    collate: Collator,
    first_index: int,
    seed: int,
    ranks: Ranks,
) -> ProbeStatistics:
    """Draw the training estimator on the probe's grid of t; a pair of masks per draw if training uses pairs.

    One forward takes one sample at one t under `num_masks` draws, so its rows do not depend on the number of
    ranks. The samples are the next `num_x0` that training sees, starting at `first_index`.
    """
    edges = probe_edges(options)
    t = (edges[:-1] + edges[1:]) / 2
    indices = range(first_index, first_index + options.num_x0)
    samples = [noise.widened(source.train_sample(index), seed, index) for index in indices]

    def measure(item: int) -> np.ndarray:
        sample_place, t_place = divmod(item, len(t))
        sample = samples[sample_place]
        draws = range(item * options.num_masks, (item + 1) * options.num_masks)
        uniforms = [mask_uniforms(seed, draw, len(sample.token_ids), Stream.PROBE) for draw in draws]
        levels = np.full(noise.corruption.num_t(len(sample.token_ids)), t[t_place])
        noised = [noise_sample(sample, levels, np.ones_like(levels), each, noise) for each in uniforms]
        sums = forward_sums(engine, collate(noised), ranks.device)  # [2, num_masks * num_t]
        return sums.reshape(2, options.num_masks, -1).sum(axis=2)

    results = share_out(measure, options.num_x0 * len(t), (2, options.num_masks), ranks)
    grid = results.reshape(options.num_x0, len(t), 2, options.num_masks)
    return ProbeStatistics(t, losses=grid[:, :, 0], squared_norms=grid[:, :, 1])
