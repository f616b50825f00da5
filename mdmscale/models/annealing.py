"""Attention annealing: a model that was trained with causal attention learns to attend forward, step by step.

This is DiffuLLaMA's method (arXiv 2410.17891). A position always attends to itself and to earlier positions.
Of all pairs of a position and a later one, each step opens a random share min(1, (step + 1) / num_steps). The
draw is a function of (seed, step). One draw serves the whole step: every rank and both rows of a MIRROR pair
use the same mask.
"""

import numpy as np
import torch

from mdmscale.diffusion.uniforms import Stream, generator


def open_share(step: int, num_steps: int) -> float:
    """The share of the pairs of a position and a later one that step `step` (0-based) opens."""
    return min(1.0, (step + 1) / num_steps)


def visible_positions(seed: int, step: int, num_steps: int, longest: int) -> np.ndarray:
    """Which position (row) may attend to which (column) in step `step`: bool [longest, longest]."""
    draws = generator(seed, Stream.ANNEALING, step).random((longest, longest), dtype=np.float32)
    return (draws < open_share(step, num_steps)) | np.tri(longest, dtype=bool)


def annealed_mask(
    attention_mask: torch.Tensor | None, visible: np.ndarray, rows: int, length: int
) -> torch.Tensor:
    """Which position attends to which in each row of a batch: bool [rows, 1, length, length].

    No position attends to padding, except that a padded position attends to itself: a softmax over nothing is
    not a number. Nothing reads its output.

    Args:
        attention_mask: [rows, length], 0 at padding; None where there is no padding.
        visible: bool [longest, longest], of `visible_positions`.
    """
    mask = torch.from_numpy(visible[:length, :length]).expand(rows, 1, length, length)
    if attention_mask is None:
        return mask.contiguous()
    return (mask & attention_mask.bool()[:, None, None, :]) | torch.eye(length, dtype=torch.bool)


def for_attention(mask: torch.Tensor, implementation: str, dtype: torch.dtype) -> torch.Tensor:
    """The mask in the form that `implementation` takes: eager adds it to the scores, sdpa selects by it."""
    if implementation != "eager":
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
