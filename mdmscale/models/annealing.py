"""Attention annealing: a model that was trained causally learns to look ahead, a little more each step.

Of the pairs of a position and a later one, a random share min(1, (step + 1) / num_steps) is open, drawn anew
each step; looking back is always open (DiffuLLaMA, arXiv 2410.17891). One draw, a function of (seed, step),
serves a whole step: every rank and both rows of a pair see the same.
"""

import numpy as np
import torch

from mdmscale.diffusion.uniforms import Stream, generator


def open_share(step: int, num_steps: int) -> float:
    """The share of later positions that step `step` (0-based) opens."""
    return min(1.0, (step + 1) / num_steps)


def open_pairs(seed: int, step: int, num_steps: int, longest: int) -> np.ndarray:
    """Which position (row) may look at which (column) in step `step`: bool [longest, longest]."""
    draws = generator(seed, Stream.ANNEALING, step).random((longest, longest), dtype=np.float32)
    return (draws < open_share(step, num_steps)) | np.tri(longest, dtype=bool)


def annealed_mask(
    attention_mask: torch.Tensor | None, pairs: np.ndarray, rows: int, length: int
) -> torch.Tensor:
    """The pairs that are open in each row of a batch and no padding: bool [rows, 1, length, length].

    A padded position, whose output nothing reads, sees itself, as a softmax over nothing is not a number.
    """
    seen = torch.from_numpy(pairs[:length, :length])  # [length, length]
    mask = seen.expand(rows, 1, length, length)
    if attention_mask is None:
        return mask.contiguous()
    return (mask & attention_mask.bool()[:, None, None, :]) | torch.eye(length, dtype=torch.bool)


def for_attention(mask: torch.Tensor, implementation: str, dtype: torch.dtype) -> torch.Tensor:
    """The mask as an attention implementation takes it: eager adds it to the scores, sdpa selects by it."""
    if implementation != "eager":
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
