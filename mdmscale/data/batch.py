"""The Batch: one micro-batch, from the loader to the model."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
import torch


@dataclass(frozen=True)
class Batch:
    """Masked rows, and the tokens that belong at their masked positions.

    A sample takes `copies` adjacent rows (2 for a MIRROR pair in one forward). Packed rows lie end to end in
    one row of the tensors.

    Legend: rows = num_samples * copies (1 if packed); length = length of the longest sample (of all rows
    together if packed); masked = number of masked positions in all rows.
    """

    input_ids: torch.Tensor  # int64 [rows, length], the mask token where masked
    attention_mask: torch.Tensor | None  # int64 [rows, length], 0 at padding; None where nothing is padded.
    # While attention is annealed, which position attends to which: bool [rows, 1, length, length], or for
    # packed rows bool [1, 1, longest, longest], the same for each row
    positions: torch.Tensor  # int64 [masked], index in the flattened rows that a target is predicted from
    targets: torch.Tensor  # int64 [masked], the clean tokens
    weights: torch.Tensor  # float32 [masked], factor of a cross-entropy in the loss of its sample
    sample_of: torch.Tensor  # int64 [masked], number in the micro-batch of a position's sample
    t: np.ndarray  # float64 [num_samples], as drawn (complement: the first row's)
    importance_weights: np.ndarray  # float64 [num_samples], 1 / p(t)
    num_tokens: int  # clean tokens, without padding
    num_eligible: int  # tokens that may be masked
    num_pairs: int  # query-key pairs: sum of the samples' squared lengths, which attention's cost grows with
    position_ids: torch.Tensor | None = None  # int64 [1, length] for slices and packed rows; None: 0, 1, ...
    row_lengths: tuple[int, ...] | None = None  # of packed rows only

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
    def num_samples(self) -> int:
        return len(self.t)

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
