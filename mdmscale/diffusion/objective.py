"""The MDM objective: what each masked position's cross-entropy weighs, and the per-sample losses that follow.

The loss of a sample with clean tokens x, eligible positions E, n = |E|, at mask rate r = r(t) under mask m is

    l(x, t, m) = (1 / n) sum_{i in E} m_i CE_i / r(t)                     (LLaDA, arXiv 2502.09992)

in nats a token; with t ~ p the unbiased estimator of its mean over uniform t is l / p(t), and with several
masks their average.
"""

from typing import Literal

import numpy as np
import torch


def mask_rate(t: float, eps: float) -> float:
    """r(t) = (1 - eps) t + eps, the probability that an eligible position is masked."""
    return (1 - eps) * t + eps


def position_weight(
    num_eligible: int,
    rates: np.ndarray,
    importance_weight: float,
    num_copies: int,
    normalization: Literal["sample", "token"],
) -> np.ndarray:
    """What the cross-entropies of masked positions add to their sample's loss, each masked at its rate.

    `sample` divides by the sample's own number of eligible positions. `token` leaves that to the caller, who
    divides the batch by the mean number over the global batch, so that every eligible token weighs the same.
    """
    share = 1 / num_eligible if normalization == "sample" else 1.0
    return share * importance_weight / (rates * num_copies)


def per_sample(values: torch.Tensor, sample_of: torch.Tensor, num_samples: int) -> torch.Tensor:
    """Sum values [masked] of positions into their samples. Returns [num_samples]."""
    return values.new_zeros(num_samples).index_add_(0, sample_of, values)
