"""Turns noised samples into a Batch."""

from dataclasses import dataclass

import numpy as np
import torch

from mdmscale.data.batch import Batch
from mdmscale.data.slicing import WHOLE, Slicer
from mdmscale.diffusion.noise import NoisedSample
from mdmscale.models.annealing import annealed_mask


@dataclass(frozen=True)
class Collator:
    """Lays out samples as the run's model and ranks need them. The rows of a sample stay adjacent.

    logit_shift: a position is predicted from the previous hidden state, the first one from its own (Dream).
    packs: rows of different lengths are concatenated into one row without padding. Otherwise each row is
    padded to the longest. slicer: cuts out this rank's part of the rows.
    """

    mask_token_id: int
    logit_shift: bool = False
    packs: bool = False
    slicer: Slicer = WHOLE

    def __call__(
        self, samples: list[NoisedSample], open_mask: np.ndarray | None = None, first_draw: int = 0
    ) -> Batch:
        """The batch of samples that all have the same number of rows.

        Args:
            open_mask: bool [longest, longest], True at [i, j] if position i of a row attends to position j;
                None if every position attends to all.
            first_draw: see Batch.
        """
        return self.slicer(self._whole(samples, open_mask, first_draw))

    def _whole(self, samples: list[NoisedSample], open_mask: np.ndarray | None, first_draw: int) -> Batch:
        num_rows = samples[0].masks.shape[0]
        lengths = np.repeat([len(sample.token_ids) for sample in samples], num_rows)  # [rows]
        width = int(lengths.max())
        rows, columns = places(lengths)  # [tokens] each; tokens of all rows, without padding
        packs = self.packs and lengths.min() < width and samples[0].attention is None
        shape = (1, len(rows)) if packs else (len(lengths), width)
        at = np.arange(len(rows)) if packs else rows * width + columns  # [tokens], index in the batch
        tokens = np.concatenate([np.tile(sample.token_ids, num_rows) for sample in samples])
        masked = np.concatenate([sample.masks.ravel() for sample in samples])
        weights = np.concatenate([sample.weights.ravel() for sample in samples])

        input_ids = np.full(shape, self.mask_token_id, dtype=np.int64)
        input_ids.ravel()[at] = np.where(masked, self.mask_token_id, tokens)
        predicted_from = at - (columns > 0) if self.logit_shift else at
        attention_mask = None
        if not packs and len(rows) < input_ids.size:
            attention_mask = torch.from_numpy((np.arange(width) < lengths[:, None]).astype(np.int64))
        if samples[0].attention is not None:
            attention_mask = row_patterns(samples, open_mask, num_rows, width)
        elif open_mask is not None:
            attention_mask = (
                torch.from_numpy(open_mask)[None, None]
                if packs
                else annealed_mask(attention_mask, open_mask, *shape)
            )
        return Batch(
            input_ids=torch.from_numpy(input_ids),
            attention_mask=attention_mask,
            positions=torch.from_numpy(predicted_from[masked]),
            targets=torch.from_numpy(tokens[masked]),
            weights=torch.from_numpy(weights[masked].astype(np.float32)),
            draw_of=torch.from_numpy(draws_of(samples, num_rows)[masked]),
            t=np.concatenate([sample.t for sample in samples]),
            importance_weights=np.concatenate([sample.importance_weights for sample in samples]),
            num_tokens=len(rows),
            num_eligible=num_rows * sum(sample.num_eligible for sample in samples),
            num_token_pairs=int(np.square(lengths).sum()),
            first_draw=first_draw,
            position_ids=position_ids(samples, columns, at, shape) if packs or _repeats(samples) else None,
            row_lengths=tuple(lengths.tolist()) if packs else None,
        )


def places(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The row and the column of each token, for rows of these lengths. Two int64 [sum of lengths]."""
    rows = np.repeat(np.arange(len(lengths)), lengths)
    first = np.cumsum(lengths) - lengths  # [rows]
    return rows, np.arange(len(rows)) - first[rows]


def draws_of(samples: list[NoisedSample], num_rows: int) -> np.ndarray:
    """The index of each token's draw among the batch's draws, int64 [tokens]."""
    parts, first = [], 0
    for sample in samples:
        t_of = np.zeros(len(sample.token_ids), dtype=np.int64) if sample.t_of is None else sample.t_of
        parts.append(first + np.tile(t_of, num_rows))
        first += len(sample.t)
    return np.concatenate(parts)


def position_ids(
    samples: list[NoisedSample], columns: np.ndarray, at: np.ndarray, shape: tuple[int, int]
) -> torch.Tensor:
    """The position of each token in its sample, int64 with the batch's shape; 0 at padding."""
    ids = np.zeros(shape, dtype=np.int64)
    ids.ravel()[at] = columns
    if _repeats(samples):
        num_rows = samples[0].masks.shape[0]
        sources = [np.tile(sample.position_ids, num_rows) for sample in samples]  # type: ignore[arg-type]
        ids.ravel()[at] = np.concatenate(sources)
    return torch.from_numpy(ids)


def _repeats(samples: list[NoisedSample]) -> bool:
    """Whether rows show some positions of their sample more than once."""
    return samples[0].position_ids is not None


def row_patterns(
    samples: list[NoisedSample], open_mask: np.ndarray | None, num_rows: int, width: int
) -> torch.Tensor:
    """The attention masks of a corruption that has its own: bool [rows, 1, width, width], queries first.

    A padded column attends to itself, because a softmax over nothing is NaN.
    """
    patterns = np.broadcast_to(np.eye(width, dtype=bool), (len(samples), width, width)).copy()
    for pattern, sample in zip(patterns, samples, strict=True):
        length = len(sample.token_ids)
        pattern[:length, :length] = sample.attention
        if open_mask is not None:
            pattern[:length, :length] &= open_mask[:length, :length]
    return torch.from_numpy(np.repeat(patterns, num_rows, axis=0)[:, None])
