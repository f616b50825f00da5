"""The MDM objective, as the weight of each masked position's cross-entropy.

The loss of a sample with clean tokens x, eligible positions E, n = |E|, at mask rate r = r(t) under mask m is

    l(x, t, m) = (1 / n) sum_{i in E} m_i CE_i / r(t)                     (LLaDA, arXiv 2502.09992)

in nats a token. With t ~ p, the unbiased estimator of its mean over uniform t is l / p(t). With several rows
of a sample, it is the mean over the rows.
"""

from typing import Literal

import numpy as np

Normalization = Literal["sample", "token"]


def token_share(num_eligible: int, normalization: Normalization) -> float:
    """What one eligible token counts in its sample's loss.

    `sample` divides by the sample's number of eligible tokens, so every sample weighs the same. `token`
    divides by nothing here: the training step divides the batch by the mean number of eligible tokens over
    the global batch, so every eligible token weighs the same.
    """
    return 1 / num_eligible if normalization == "sample" else 1.0


def position_weight(
    share: float, importance_weight: float | np.ndarray, rates: np.ndarray, num_rows: int
) -> np.ndarray:
    """The whole weight of a masked position's cross-entropy in its sample's loss.

    Args:
        share: see `token_share`.
        importance_weight: 1 / p(t) of the t that the position is masked at.
        rates: float64 [masked], the probability that the position is masked.
        num_rows: forward rows of the sample, whose losses are averaged.

    Returns:
        float64 [masked].
    """
    return share * importance_weight / (rates * num_rows)
