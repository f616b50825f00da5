"""The masks and weights of a stack's steps, made by the samplers and corruptions of training.

All that depends on how `mdmscale.diffusion` is called lies here.

Legend: samples = samples of a step; rows = forward rows of a sample; length = tokens of a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mdmscale.data.order import sequence_of_sample
from mdmscale.diffusion.density import DensityTable
from mdmscale.diffusion.levels import Levels
from mdmscale.diffusion.noise import Noise, NoisedSample, corrupted, noise_sample
from mdmscale.diffusion.sample import Sample
from mdmscale.diffusion.t_samplers import TSampler
from mdmscale.diffusion.uniforms import Stream, mask_uniforms


@dataclass(frozen=True, eq=False)
class StepRows:
    """What all lanes train on in a step.

    targets: int64 [lanes, samples * rows, length], the clean tokens. masks: bool, of the same shape. weights:
    float32, of the same shape: of each cross-entropy in the loss of its sample.
    """

    targets: torch.Tensor
    masks: torch.Tensor
    weights: torch.Tensor


def training_noise(sample: Sample, index: int, sampler: TSampler, noise: Noise) -> NoisedSample:
    """Sample `index` of the run of a seed, as `TrainLoader.noised` makes it."""
    length = len(sample.token_ids)
    levels = sampler.draw(index, noise.corruption.num_t(length))
    return noise_sample(sample, levels, noise.uniforms(sampler.seed, index, length), noise)


def probe_noise(
    sample: Sample, t: float, draw: int, edges: np.ndarray, sampler: TSampler, noise: Noise
) -> NoisedSample:
    """Draw number `draw` of a P-POTS probe at t, as `p_pots_probe.measure_p_pots` makes it."""
    length, corruption = len(sample.token_ids), noise.corruption.probed
    uniform = DensityTable.uniform(edges[0], edges[-1])
    u = np.full(corruption.num_t(length), uniform.distribution(np.asarray(t)))
    levels = Levels(u, uniform, sampler.loss_weight)
    return corrupted(
        sample, levels, mask_uniforms(sampler.seed, draw, length, Stream.PROBE), noise, corruption
    )


def step_rows(samples: Sequence[Sample], samplers: Sequence[TSampler], step: int, noise: Noise) -> StepRows:
    """The rows of step `step` of all lanes. Lanes of a seed with the same p(t) have the same.

    Each lane goes through the samples in epochs of its own seed's order, as a run does.
    """
    made: dict[bytes, tuple[np.ndarray, ...]] = {}
    keys = [key_of(sampler) for sampler in samplers]
    for key, sampler in zip(keys, samplers, strict=True):
        if key in made:
            continue
        noised = []
        for slot in range(sampler.global_batch_size):
            index = step * sampler.global_batch_size + slot
            sample = samples[sequence_of_sample(index, len(samples), sampler.seed)]
            noised.append(training_noise(sample, index, sampler, noise))
        made[key] = rows_of(noised)
    targets, masks, weights = zip(*(made[key] for key in keys), strict=True)
    return StepRows(
        torch.from_numpy(np.stack(targets)),
        torch.from_numpy(np.stack(masks)),
        torch.from_numpy(np.stack(weights)),
    )


def key_of(sampler: TSampler) -> bytes:
    """What samplers of a stack differ in: the seed and p(t)."""
    density = sampler.density
    return sampler.seed.to_bytes(8, "little") + density.edges.tobytes() + density.density.tobytes()


def rows_of(noised: Sequence[NoisedSample]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The clean tokens, masks and weights of all rows of samples, [samples * rows, length] each."""
    targets = np.concatenate([np.broadcast_to(each.token_ids, each.masks.shape) for each in noised])
    masks = np.concatenate([each.masks for each in noised])
    weights = np.concatenate([each.weights for each in noised]).astype(np.float32)
    return targets, masks, weights
