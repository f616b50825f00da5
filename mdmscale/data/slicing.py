"""Cuts the rows of a batch into slices, one for each rank that shares the sequences."""

from dataclasses import dataclass, replace

import torch
from torch.nn import functional as F

from mdmscale.data.batch import Batch


@dataclass(frozen=True)
class Slicer:
    """Cuts the slice of rank `sp_rank` of `sp_size` out of each row. Packed rows count as one row.

    A masked position belongs to the slice with the hidden state that predicts it.
    """

    sp_rank: int
    sp_size: int

    def __call__(self, batch: Batch) -> Batch:
        """The batch of this slice. Its numbers of draws and tokens remain those of the whole batch."""
        if self.sp_size == 1:
            return batch
        rows, length = batch.input_ids.shape
        padding = -length % self.sp_size
        width = (length + padding) // self.sp_size
        first = self.sp_rank * width
        position_ids = torch.arange(length)[None] if batch.position_ids is None else batch.position_ids
        attention_mask, row_lengths = batch.attention_mask, batch.row_lengths
        if row_lengths is None:
            attention_mask = whole_mask(attention_mask, rows, length, padding)
        elif padding:
            row_lengths = (*row_lengths, padding)
        columns, row = batch.positions % length, batch.positions // length  # [masked]
        is_here = (columns >= first) & (columns < first + width)  # [masked]
        return replace(
            batch,
            input_ids=F.pad(batch.input_ids, (0, padding))[:, first : first + width].contiguous(),
            position_ids=F.pad(position_ids, (0, padding))[:, first : first + width].contiguous(),
            attention_mask=attention_mask,
            row_lengths=row_lengths,
            positions=(row * width + columns - first)[is_here],
            targets=batch.targets[is_here],
            weights=batch.weights[is_here],
            draw_of=batch.draw_of[is_here],
        )


WHOLE = Slicer(0, 1)


def whole_mask(
    attention_mask: torch.Tensor | None, rows: int, length: int, padding: int
) -> torch.Tensor | None:
    """The attention mask of whole rows with `padding` added: bool [rows, 1, 1, length + padding].

    A mask of pairs [..., length, length] remains a mask of pairs. In it added positions attend to themselves,
    because a softmax over nothing is NaN. None if all positions attend to all.
    """
    if attention_mask is None:
        if not padding:
            return None
        attention_mask = torch.ones(rows, length, dtype=torch.int64)
    if attention_mask.dim() == 2:
        return F.pad(attention_mask.bool(), (0, padding))[:, None, None, :]
    mask = F.pad(attention_mask, (0, padding, 0, padding))
    return mask | torch.eye(length + padding, dtype=torch.bool)
