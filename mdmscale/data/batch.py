"""The Batch: one micro-batch, which the loader makes and the model takes."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
import torch


@dataclass(frozen=True)
class Batch:
    """Masked rows, and the clean tokens of their masked positions. In autoregressive training the "masked"
    positions are those that are predicted, and the rows are clean.

    The rows of a sample are adjacent. Legend: rows = number of rows; length = length of the longest row;
    masked = number of masked positions in all rows; draws = number of t drawn for the samples, one per sample
    unless the corruption draws more. Packed rows are concatenated: rows = 1, and length = the sum of their
    lengths.
    """

    input_ids: torch.Tensor  # int64 [rows, length], the mask token at masked positions
    # int64 [rows, length], 0 at padding; None if nothing is padded. If positions do not attend to all others,
    # bool [rows, 1, length, length], or for packed rows bool [1, 1, longest, longest], the same for each row.
    attention_mask: torch.Tensor | None
    positions: torch.Tensor  # int64 [masked], index in the flattened rows of the state that predicts a target
    targets: torch.Tensor  # int64 [masked], the clean tokens
    weights: torch.Tensor  # float32 [masked], factor of each cross-entropy in its sample's loss
    draw_of: torch.Tensor  # int64 [masked], index of the draw below that masked the position
    t: np.ndarray  # float64 [draws], as drawn
    importance_weights: np.ndarray  # float64 [draws], 1 / p(t) over the sample's number of draws
    num_tokens: int  # clean tokens of the samples, counted once for each row
    num_eligible: int  # those of them that may be masked
    num_row_tokens: int  # tokens of all rows, without padding
    num_token_pairs: int  # query-key pairs: the sum of the rows' squared lengths; about half if causal
    first_draw: int = 0  # index of the first draw among this rank's draws of the step
    position_ids: torch.Tensor | None = None  # int64 [1 or rows, length]; None: 0, 1, 2, ...
    row_lengths: tuple[int, ...] | None = None  # of packed rows; None if rows are not packed

    def to(self, device: torch.device) -> Self:
        """The batch with its tensors on `device`."""
        return replace(self, **self._each_tensor(lambda tensor: tensor.to(device, non_blocking=True)))

    def pin_memory(self) -> Self:
        """The batch in page-locked memory, from which a GPU can copy while this process continues."""
        return replace(self, **self._each_tensor(torch.Tensor.pin_memory))

    def __getstate__(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Pickle tensors as numpy arrays.

        A pickled tensor takes a file descriptor and shared memory. A step with many micro-batches can need
        more of both than a process or a container has.
        """
        arrays = self._each_tensor(torch.Tensor.numpy)
        return arrays, {name: value for name, value in vars(self).items() if name not in arrays}

    def __setstate__(self, state: tuple[dict[str, Any], dict[str, Any]]) -> None:
        arrays, others = state
        vars(self).update({name: torch.from_numpy(array) for name, array in arrays.items()}, **others)

    def _each_tensor(self, change: Callable[[torch.Tensor], Any]) -> dict[str, Any]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: change(value) for name, value in values.items() if isinstance(value, torch.Tensor)}

    @property
    def num_draws(self) -> int:
        return len(self.t)

    def sum_by_draw(self, values: torch.Tensor) -> torch.Tensor:
        """Sum the values [masked] of positions over the positions of each draw. Returns [draws]."""
        return values.new_zeros(self.num_draws).index_add_(0, self.draw_of, values)

    @property
    def model_inputs(self) -> dict[str, Any]:
        """The arguments of MaskedDiffusionModel.forward."""
        names = (
            "input_ids",
            "attention_mask",
            "positions",
            "targets",
            "weights",
            "position_ids",
            "row_lengths",
        )
        return {name: getattr(self, name) for name in names}
