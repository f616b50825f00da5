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
    Samples for autoregressive training need it.
    packs: rows of different lengths are concatenated into one row without padding. Otherwise each row is
    padded to the longest. slicer: cuts out this rank's part of the rows.
    """

    mask_token_id: int
    logit_shift: bool = False
    packs: bool = False
    slicer: Slicer = WHOLE

    def __call__(
        self, samples: list[NoisedSample], visible: np.ndarray | None = None, first_draw: int = 0
    ) -> Batch:
        """The batch of samples that all have the same number of rows.

        Args:
            visible: bool [longest, longest], True at [i, j] if position i of a row attends to position j;
                None if every position attends to all.
            first_draw: see Batch.
        """
        return self.slicer(self._whole(samples, visible, first_draw))

    def _whole(self, samples: list[NoisedSample], visible: np.ndarray | None, first_draw: int) -> Batch:
        num_rows = samples[0].masks.shape[0]
        lengths = np.repeat([len(sample.token_ids) for sample in samples], num_rows)  # [rows]
        width = int(lengths.max())
        rows, columns = rows_and_columns(lengths)  # [tokens] each; tokens of all rows, without padding
        packs = self.packs and lengths.min() < width and samples[0].attention is None
        shape = (1, len(rows)) if packs else (len(lengths), width)
        at = np.arange(len(rows)) if packs else rows * width + columns  # [tokens], index in the batch
        positions = positions_of(samples, columns)  # [tokens], of each token in its sample
        tokens = np.concatenate([np.tile(sample.token_ids, num_rows) for sample in samples])
        masked = np.concatenate([sample.masks.ravel() for sample in samples])
        weights = np.concatenate([sample.weights.ravel() for sample in samples])
        predicted_from = at - (positions > 0) if self.logit_shift else at
        is_causal = samples[0].is_causal
        assert self.logit_shift or not is_causal
        needs_positions = packs or samples[0].position_ids is not None
        return Batch(
            input_ids=scattered(
                tokens if is_causal else np.where(masked, self.mask_token_id, tokens),
                at,
                shape,
                self.mask_token_id,
            ),
            attention_mask=attention_mask(samples, lengths, visible, packs),
            positions=torch.from_numpy(predicted_from[masked]),
            targets=torch.from_numpy(tokens[masked]),
            weights=torch.from_numpy(weights[masked].astype(np.float32)),
            draw_of=torch.from_numpy(draws_of(samples)[masked]),
            t=np.concatenate([sample.t for sample in samples]),
            importance_weights=np.concatenate([sample.importance_weights for sample in samples]),
            num_tokens=num_rows * sum(sample.num_tokens for sample in samples),
            num_eligible=num_rows * sum(sample.num_eligible for sample in samples),
            num_row_tokens=len(rows),
            num_token_pairs=num_pairs(lengths, is_causal),
            first_draw=first_draw,
            position_ids=scattered(positions, at, shape, 0) if needs_positions else None,
            row_lengths=tuple(lengths.tolist()) if packs else None,
        )


def rows_and_columns(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The row and the column of each token, for rows of these lengths. Two int64 [sum of lengths]."""
    rows = np.repeat(np.arange(len(lengths)), lengths)
    first = np.cumsum(lengths) - lengths  # [rows]
    return rows, np.arange(len(rows)) - first[rows]


def num_pairs(lengths: np.ndarray, is_causal: bool) -> int:
    """The pairs of a position and one that it attends to, in rows of these lengths."""
    return int((lengths * (lengths + 1) // 2 if is_causal else np.square(lengths)).sum())


def scattered(values: np.ndarray, at: np.ndarray, shape: tuple[int, int], padding: int) -> torch.Tensor:
    """The batch's rows with `values` [tokens] at the indices `at`, int64 [*shape]; `padding` elsewhere."""
    rows = np.full(shape, padding, dtype=np.int64)
    rows.ravel()[at] = values
    return torch.from_numpy(rows)


def positions_of(samples: list[NoisedSample], columns: np.ndarray) -> np.ndarray:
    """The position of each token in its sample, int64 [tokens]: its column, or what the corruption says."""
    parts = [
        np.tile(sample.position_ids, len(sample.masks))
        for sample in samples
        if sample.position_ids is not None
    ]
    return np.concatenate(parts) if parts else columns


def draws_of(samples: list[NoisedSample]) -> np.ndarray:
    """The index of each token's draw among the batch's draws, int64 [tokens]."""
    parts, first = [], 0
    for sample in samples:
        parts.append(first + np.broadcast_to(sample.t_of, sample.masks.shape).ravel())
        first += len(sample.t)
    return np.concatenate(parts)


def attention_mask(
    samples: list[NoisedSample], lengths: np.ndarray, visible: np.ndarray | None, packs: bool
) -> torch.Tensor | None:
    """Which positions attend to which, see Batch; `lengths` are those of the rows."""
    if samples[0].attention is not None:
        return row_patterns(samples, visible, int(lengths.max()))
    if packs:
        return None if visible is None else torch.from_numpy(visible)[None, None]
    width, mask = int(lengths.max()), None
    if lengths.min() < width:
        mask = torch.from_numpy((np.arange(width) < lengths[:, None]).astype(np.int64))
    return mask if visible is None else annealed_mask(mask, visible, len(lengths), width)


def row_patterns(samples: list[NoisedSample], visible: np.ndarray | None, width: int) -> torch.Tensor:
    """The attention masks of a corruption that has its own: bool [rows, 1, width, width], queries first.

    A padded column attends to itself, because a softmax over nothing is NaN.
    """
    num_rows = samples[0].masks.shape[0]
    patterns = np.broadcast_to(np.eye(width, dtype=bool), (len(samples), width, width)).copy()
    for pattern, sample in zip(patterns, samples, strict=True):
        length = len(sample.token_ids)
        pattern[:length, :length] = sample.attention
        if visible is not None:
            at = np.arange(length) if sample.position_ids is None else sample.position_ids
            pattern[:length, :length] &= visible[np.ix_(at, at)]
    return torch.from_numpy(np.repeat(patterns, num_rows, axis=0)[:, None])
