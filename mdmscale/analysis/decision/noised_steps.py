"""The masks and weights of a stack's steps, made by the samplers and corruptions of training.

Legend: samples = samples of a step; rows = forward rows of a sample; length = tokens of a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mdmscale.data.order import sequence_of_sample
from mdmscale.diffusion.noise import Noise, NoisedSample, training_noise
from mdmscale.diffusion.sample import Sample
from mdmscale.diffusion.t_samplers import TSampler


@dataclass(frozen=True, eq=False)
class StepRows:
    """What all lanes train on in a step.

    targets: int64 [lanes, samples * rows, length], the clean tokens. masks: bool, of the same shape. weights:
    float32, of the same shape: of each cross-entropy in the loss of its sample.
    """

    targets: torch.Tensor
    masks: torch.Tensor
    weights: torch.Tensor


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
