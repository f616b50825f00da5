"""Samples to noised samples, and these to a Batch."""

from dataclasses import dataclass

import numpy as np
import torch

from mdmscale.config import DiffusionSection
from mdmscale.data.batch import Batch
from mdmscale.data.source import Sample
from mdmscale.diffusion.masking import draw_masks
from mdmscale.diffusion.objective import mask_rate, position_weight


@dataclass(frozen=True, eq=False)
class NoisedSample:
    """A sample with its masks drawn.

    token_ids: int64 [length], clean. masks: bool [copies, length]. weight: what the cross-entropy of each
    masked position adds to the sample's loss. num_eligible: tokens that could have been masked.
    """

    token_ids: np.ndarray
    masks: np.ndarray
    weight: float
    num_eligible: int


def noise_sample(
    sample: Sample, t: float, importance_weight: float, uniforms: np.ndarray, diffusion: DiffusionSection
) -> NoisedSample:
    """Mask a sample at t by uniforms [length], as `diffusion` says."""
    rate = mask_rate(t, diffusion.eps)
    masks = draw_masks(diffusion.masking, uniforms, sample.eligible, rate)
    num_eligible = int(sample.eligible.sum())
    weight = position_weight(num_eligible, rate, importance_weight, len(masks), diffusion.normalization)
    return NoisedSample(sample.token_ids, masks, weight, num_eligible)


def collate(samples: list[NoisedSample], mask_token_id: int) -> Batch:
    """Stack samples with equal numbers of copies into rows padded to the longest; copies stay adjacent."""
    copies = samples[0].masks.shape[0]
    length = max(len(sample.token_ids) for sample in samples)
    shape = (len(samples) * copies, length)
    clean = np.full(shape, mask_token_id, dtype=np.int64)  # [rows, length]
    masked = np.zeros(shape, dtype=bool)
    real = np.zeros(shape, dtype=np.int64)
    for index, sample in enumerate(samples):
        rows, width = slice(index * copies, (index + 1) * copies), len(sample.token_ids)
        clean[rows, :width] = sample.token_ids
        masked[rows, :width] = sample.masks
        real[rows, :width] = 1

    positions = np.flatnonzero(masked)
    sample_of = positions // (length * copies)
    weights = np.array([sample.weight for sample in samples], dtype=np.float32)[sample_of]
    return Batch(
        input_ids=torch.from_numpy(np.where(masked, mask_token_id, clean)),
        attention_mask=None if real.all() else torch.from_numpy(real),
        positions=torch.from_numpy(positions),
        targets=torch.from_numpy(clean.ravel()[positions]),
        weights=torch.from_numpy(weights),
        sample_of=torch.from_numpy(sample_of),
        num_samples=len(samples),
        num_tokens=sum(len(sample.token_ids) for sample in samples),
        num_eligible=sum(sample.num_eligible for sample in samples),
    )
