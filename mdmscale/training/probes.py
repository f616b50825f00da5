"""Passes without gradients: the statistics that P-POTS fits, and evaluation on fixed noise.

Both are lists of items shared out over the ranks by index. Every rank runs the same number of forwards
(repeating items where there are too few), for under ZeRO-3 each forward is a collective; results are summed
as disjoint entries of one array, so they do not depend on the number of ranks.
"""

from collections.abc import Callable

import numpy as np
import torch

from mdmscale.config.diffusion import DiffusionSection
from mdmscale.config.training import EvalSection
from mdmscale.data.batch import Batch
from mdmscale.data.collate import Collator
from mdmscale.data.source import SampleSource
from mdmscale.diffusion.noise import Noise, NoisedSample, noise_sample
from mdmscale.diffusion.objective import per_sample
from mdmscale.diffusion.p_pots import ProbeStatistics, probe_edges
from mdmscale.diffusion.uniforms import Stream, mask_uniforms
from mdmscale.parallel.collectives import all_reduce_sum
from mdmscale.parallel.ranks import Ranks

# One noise for every run's evaluation, so that their losses can be compared.
EVAL_SEED = 0


def measure_p_pots(
    engine: torch.nn.Module,
    source: SampleSource,
    noise: Noise,
    collate: Collator,
    first_index: int,
    seed: int,
    ranks: Ranks,
) -> ProbeStatistics:
    """Draw the training estimator (a pair where that is in use) on the probe's grid of t.

    One item is a sample at one t under `num_masks` draws, so that a forward's rows do not depend on the
    number of ranks. The samples are the next `num_x0` of training, from `first_index`.
    """
    options = noise.options.p_pots
    edges = probe_edges(options)
    t = (edges[:-1] + edges[1:]) / 2
    indices = range(first_index, first_index + options.num_x0)
    samples = [noise.widened(source.train_sample(index), seed, index) for index in indices]

    def measure(item: int) -> np.ndarray:
        sample_place, t_place = divmod(item, len(t))
        sample = samples[sample_place]
        draws = range(item * options.num_masks, (item + 1) * options.num_masks)
        uniforms = [mask_uniforms(seed, draw, len(sample.token_ids), Stream.PROBE) for draw in draws]
        noised = [noise_sample(sample, t[t_place], 1.0, each, noise) for each in uniforms]
        return _forward(engine, collate(noised), ranks.device)  # [2, num_masks]

    results = _share_out(measure, options.num_x0 * len(t), (2, options.num_masks), ranks)
    grid = results.reshape(options.num_x0, len(t), 2, options.num_masks)
    return ProbeStatistics(t, losses=grid[:, :, 0], squared_norms=grid[:, :, 1])


def evaluate(
    engine: torch.nn.Module,
    source: SampleSource,
    options: EvalSection,
    eps: float,
    collate: Collator,
    rows_per_forward: int,
    ranks: Ranks,
) -> float:
    """The MDM loss on held-out data, in nats a token: mean over samples and a fixed grid of t, fixed masks.

    Mask, t and order are the same for every run and step, so that differences are the model's. Plain
    Bernoulli masks, whatever training uses.
    """
    num_samples = min(options.samples, source.num_held_out)
    num_draws = num_samples * options.num_t
    plain, grid = Noise(DiffusionSection(eps=eps)), eval_t(options)

    def draw(index: int) -> NoisedSample:
        sample_place, t_place = divmod(index, options.num_t)
        sample = source.held_out_sample(sample_place * source.num_held_out // num_samples)  # evenly spread
        uniforms = mask_uniforms(EVAL_SEED, index, len(sample.token_ids), Stream.EVAL)
        return noise_sample(sample, grid[t_place], 1.0, uniforms, plain)

    def measure(item: int) -> np.ndarray:
        indices = range(item * rows_per_forward, min((item + 1) * rows_per_forward, num_draws))
        batch = collate([draw(index) for index in indices])
        return np.array([_forward(engine, batch, ranks.device)[0].sum()])

    sums = _share_out(measure, -(-num_draws // rows_per_forward), (1,), ranks)
    return float(sums.sum() / num_draws)


def eval_t(options: EvalSection) -> np.ndarray:
    """The fixed t that every held-out sample is evaluated at, float64 [num_t]: midpoints of equal cells."""
    return (np.arange(options.num_t) + 0.5) / options.num_t


@torch.no_grad()
def _forward(engine: torch.nn.Module, batch: Batch, device: torch.device) -> np.ndarray:
    """Per-sample losses and squared logit-gradient norms, float64 [2, num_samples]."""
    batch = batch.to(device)
    was_training = engine.training
    engine.eval()
    _, losses, squared_norms = engine(**batch.model_inputs)
    engine.train(was_training)
    values = (batch.weights * losses, batch.weights.square() * squared_norms)
    sums = [per_sample(value.double(), batch.sample_of, batch.num_samples) for value in values]
    return torch.stack(sums).cpu().numpy()


def _share_out(
    measure: Callable[[int], np.ndarray], num_items: int, shape: tuple[int, ...], ranks: Ranks
) -> np.ndarray:
    """measure(item) of every item, the data ranks taking turns: float64 [num_items, *shape] on all ranks.

    Ranks that share a sequence measure the same item, each the part of its slice.
    """
    results = torch.zeros(num_items, *shape, dtype=torch.float64)
    for turn in range(-(-num_items // ranks.dp_size)):
        item = turn * ranks.dp_size + ranks.dp_rank
        measured = measure(item % num_items)
        if item < num_items and ranks.speaks_for_slice:
            results[item] = torch.from_numpy(measured)
    return all_reduce_sum(results.to(ranks.device)).cpu().numpy()
