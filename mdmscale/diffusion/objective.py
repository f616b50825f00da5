"""The MDM objective, as a weight for the cross-entropy of each masked position.

For clean tokens x, eligible positions E with n = |E|, mask rate r = r(t) and mask m, the loss of a sample is

    l(x, t, m) = (1 / n) sum_{i in E} m_i CE_i / r(t)                     (LLaDA, arXiv 2502.09992)

in nats per token. With t ~ p, l / p(t) is an unbiased estimator of the mean of l over uniform t. If a sample
has several rows, the estimator is the mean over its rows.
"""

from typing import Literal

import numpy as np

Normalization = Literal["sample", "token"]
Objective = Literal["full", "ar"]
"""full: the MDM objective above. ar: cross-entropy of the next token, for comparison with that."""


def token_share(num_eligible: int, normalization: Normalization) -> float:
    """The weight of one eligible token in its sample's loss.

    `sample` divides by the sample's number of eligible tokens, so all samples have the same weight. `token`
    does not divide here. Instead the training step divides the batch's loss by the mean number of eligible
    tokens per sample of the global batch, so all eligible tokens have the same weight.
    """
    return 1 / max(1, num_eligible) if normalization == "sample" else 1.0


def position_weight(
    share: float, importance_weight: float | np.ndarray, rates: np.ndarray, num_rows: int
) -> np.ndarray:
    """The weight of a masked position's cross-entropy in its sample's loss, with all factors included.

    Args:
        share: see `token_share`.
        importance_weight: 1 / p(t) at the t of the position.
        rates: float64 [masked], the probability that the position is masked.
        num_rows: number of forward rows of the sample; the loss is the mean over them.

    Returns:
        float64 [masked].
    """
    return share * importance_weight / (rates * num_rows)
