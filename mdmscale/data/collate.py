"""Noised samples to a Batch."""

import numpy as np
import torch

from mdmscale.data.batch import Batch
from mdmscale.diffusion.noise import NoisedSample


def collate(samples: list[NoisedSample], mask_token_id: int) -> Batch:
    """Stack samples with equal numbers of copies into rows padded to the longest; copies stay adjacent."""
    copies = samples[0].masks.shape[0]
    length = max(len(sample.token_ids) for sample in samples)
    shape = (len(samples) * copies, length)
    clean = np.full(shape, mask_token_id, dtype=np.int64)  # [rows, length]
    masked = np.zeros(shape, dtype=bool)
    real = np.zeros(shape, dtype=np.int64)
    weights = np.zeros(shape, dtype=np.float32)
    for index, sample in enumerate(samples):
        rows, width = slice(index * copies, (index + 1) * copies), len(sample.token_ids)
        clean[rows, :width] = sample.token_ids
        masked[rows, :width] = sample.masks
        weights[rows, :width] = sample.weights
        real[rows, :width] = 1

    positions = np.flatnonzero(masked)
    return Batch(
        input_ids=torch.from_numpy(np.where(masked, mask_token_id, clean)),
        attention_mask=None if real.all() else torch.from_numpy(real),
        positions=torch.from_numpy(positions),
        targets=torch.from_numpy(clean.ravel()[positions]),
        weights=torch.from_numpy(weights.ravel()[positions]),
        sample_of=torch.from_numpy(positions // (length * copies)),
        t=np.array([sample.t for sample in samples]),
        importance_weights=np.array([sample.importance_weight for sample in samples]),
        num_tokens=sum(len(sample.token_ids) for sample in samples),
        num_eligible=sum(sample.num_eligible for sample in samples),
        num_pairs=sum(len(sample.token_ids) ** 2 for sample in samples),
    )
