"""Masks from uniforms: one Bernoulli mask, or MIRROR's antithetic pair."""

from typing import Literal

import numpy as np


def draw_masks(
    masking: Literal["bernoulli", "mirror"], uniforms: np.ndarray, eligible: np.ndarray, mask_rate: float
) -> np.ndarray:
    """The masks of one sample, each marginally Bernoulli(mask_rate) over the eligible positions.

    bernoulli: m = [U < r]. mirror (arXiv 2511.18159): also m' = [U >= 1 - r] from the same uniforms, so that
    a position masked in one copy tends to be open in the other: Cov(m, m') = max(2r - 1, 0) - r^2 <= 0.

    Args:
        uniforms: float64 [length] in [0, 1), one a position.
        eligible: bool [length].
        mask_rate: r in (0, 1].

    Returns:
        bool [copies, length]; copies is 1, or 2 for mirror.
    """
    first = (uniforms < mask_rate) & eligible
    match masking:
        case "bernoulli":
            return first[None]
        case "mirror":
            return np.stack([first, (uniforms >= 1 - mask_rate) & eligible])
