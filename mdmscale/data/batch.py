"""The Batch: one micro-batch, from the loader to the model."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
import torch


@dataclass(frozen=True)
class Batch:
    """Masked rows, and the tokens that belong at their masked positions.

    The rows of a sample are adjacent. Legend: rows; length = that of the longest row; masked = masked
    positions in all rows; draws = the t that were drawn for the samples, one a sample unless the corruption
    draws more. Packed rows lie end to end in one: rows = 1, and length = the sum of theirs.
    """

    input_ids: torch.Tensor  # int64 [rows, length], the mask token where masked
    # int64 [rows, length], 0 at padding; None where nothing is padded. Where positions do not see all others,
    # bool [rows, 1, length, length]; in packed rows bool [1, 1, longest, longest], the same in each.
    attention_mask: torch.Tensor | None
    positions: torch.Tensor  # int64 [masked], index in the flattened rows that a target is predicted from
    targets: torch.Tensor  # int64 [masked], the clean tokens
    weights: torch.Tensor  # float32 [masked], factor of a cross-entropy in its sample's loss
    draw_of: torch.Tensor  # int64 [masked], which of the draws below a position was masked by
    t: np.ndarray  # float64 [draws], as drawn
    importance_weights: np.ndarray  # float64 [draws], 1 / p(t)
    num_tokens: int  # of all rows, padding not counted
    num_eligible: int  # tokens of all rows that may be masked
    num_token_pairs: int  # query-key pairs: the sum of the rows' squared lengths
    first_draw: int = 0  # the number of the first draw among this rank's draws of the step
    position_ids: torch.Tensor | None = None  # int64 [1 or rows, length]; None: from 0 on
    row_lengths: tuple[int, ...] | None = None  # of packed rows

    def to(self, device: torch.device) -> Self:
        """The batch with its tensors on `device`."""
        return replace(self, **self._each_tensor(lambda tensor: tensor.to(device, non_blocking=True)))

    def pin_memory(self) -> Self:
        """The batch in page-locked memory, which a GPU can copy while this process continues."""
        return replace(self, **self._each_tensor(torch.Tensor.pin_memory))

    def __getstate__(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Pickle tensors as numpy arrays.

        Pickled as tensors, each would take a file descriptor and shared memory. A step with many
        micro-batches can need more of both than a process or a container has.
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
        """Sum the values [masked] of positions into the draws they were masked by. Returns [draws]."""
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
