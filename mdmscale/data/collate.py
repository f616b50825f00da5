"""Noised samples to a Batch."""

from dataclasses import dataclass

import numpy as np
import torch

from mdmscale.data.batch import Batch
from mdmscale.data.slicing import WHOLE, Slicer
from mdmscale.diffusion.noise import NoisedSample
from mdmscale.models.annealing import annealed_mask


@dataclass(frozen=True)
class Collator:
    """Lays samples out as a run's model and ranks take them; copies of a sample stay adjacent.

    logit_shift: a position is predicted from the hidden state before it, the first from its own (Dream).
    packs: rows of different lengths lie end to end in one, none padded; else each is padded to the longest.
    slicer: cuts out what of the rows is this rank's.
    """

    mask_token_id: int
    logit_shift: bool = False
    packs: bool = False
    slicer: Slicer = WHOLE

    def __call__(self, samples: list[NoisedSample], pairs: np.ndarray | None = None) -> Batch:
        """The rows of samples with equal numbers of copies.

        Args:
            pairs: bool [longest, longest], which position sees which within a row; None: every one sees all.
        """
        return self.slicer(self._whole(samples, pairs))

    def _whole(self, samples: list[NoisedSample], pairs: np.ndarray | None) -> Batch:
        copies = samples[0].masks.shape[0]
        lengths = np.repeat([len(sample.token_ids) for sample in samples], copies)  # [rows]
        width = int(lengths.max())
        rows, columns = places(lengths)  # [tokens] each; tokens = all rows' without padding
        packs = self.packs and lengths.min() < width
        shape = (1, len(rows)) if packs else (len(lengths), width)
        at = np.arange(len(rows)) if packs else rows * width + columns  # [tokens], where a token lies
        tokens = np.concatenate([np.tile(sample.token_ids, copies) for sample in samples])
        masked = np.concatenate([sample.masks.ravel() for sample in samples])
        weights = np.concatenate([sample.weights.ravel() for sample in samples])

        input_ids = np.full(shape, self.mask_token_id, dtype=np.int64)
        input_ids.ravel()[at] = np.where(masked, self.mask_token_id, tokens)
        predicted_from = at - (columns > 0) if self.logit_shift else at
        attention_mask = None
        if not packs and len(rows) < input_ids.size:
            attention_mask = torch.from_numpy((np.arange(width) < lengths[:, None]).astype(np.int64))
        if pairs is not None:
            attention_mask = (
                torch.from_numpy(pairs)[None, None] if packs else annealed_mask(attention_mask, pairs, *shape)
            )
        return Batch(
            input_ids=torch.from_numpy(input_ids),
            attention_mask=attention_mask,
            positions=torch.from_numpy(predicted_from[masked]),
            targets=torch.from_numpy(tokens[masked]),
            weights=torch.from_numpy(weights[masked].astype(np.float32)),
            sample_of=torch.from_numpy(rows[masked] // copies),
            t=np.array([sample.t for sample in samples]),
            importance_weights=np.array([sample.importance_weight for sample in samples]),
            num_tokens=sum(len(sample.token_ids) for sample in samples),
            num_eligible=sum(sample.num_eligible for sample in samples),
            num_pairs=sum(len(sample.token_ids) ** 2 for sample in samples),
            position_ids=torch.from_numpy(columns)[None] if packs else None,
            row_lengths=tuple(lengths.tolist()) if packs else None,
        )


def places(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The row and the column of each token of rows of these lengths, int64 [sum of lengths] each."""
    rows = np.repeat(np.arange(len(lengths)), lengths)
    first = np.cumsum(lengths) - lengths  # [rows]
    return rows, np.arange(len(rows)) - first[rows]
