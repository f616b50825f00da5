"""Which positions may be masked, at what rates, and the masks that uniforms make of them.

Legend: length = tokens of the sample; copies = forward rows of the sample, 2 for a pair.
"""

from typing import Literal

import numpy as np

from mdmscale.diffusion.objective import mask_rate

Masking = Literal["bernoulli", "mirror", "complement"]


def copy_rates(masking: Masking, t: float, eps: float) -> np.ndarray:
    """The mask rate of each copy, float64 [copies]: r(t), then in a pair r(t) or (complement) r(1 - t)."""
    match masking:
        case "bernoulli":
            return np.array([mask_rate(t, eps)])
        case "mirror":
            return np.array([mask_rate(t, eps)] * 2)
        case "complement":
            return np.array([mask_rate(t, eps), mask_rate(1 - t, eps)])


def position_rates(
    rates: np.ndarray, eligible: np.ndarray, is_delimiter: np.ndarray | None = None, delta: float = 0.0
) -> np.ndarray:
    """The probability that each position is masked: 0 where it is not eligible.

    With ISAD (arXiv 2511.18159) a delimiter's is min(r + delta, 1); the caller divides its loss by that.

    Args:
        rates: float64 [copies].
        eligible, is_delimiter: bool [length].

    Returns:
        float64 [copies, length].
    """
    by_position = np.where(eligible, rates[:, None], 0.0)
    if is_delimiter is None:
        return by_position
    return np.where(eligible & is_delimiter, np.minimum(rates[:, None] + delta, 1.0), by_position)


def draw_masks(uniforms: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """Masks that are marginally Bernoulli(rates), those of a pair antithetic.

    The first copy is m = [U < r], the second m' = [U >= 1 - r'] of the same uniforms, so that a position
    masked in one tends to be open in the other. With r' = r that is MIRROR (arXiv 2511.18159): Cov(m, m') =
    max(2r - 1, 0) - r^2 <= 0. With r' = r(1 - t) the two are each other's complement, up to eps.

    Args:
        uniforms: float64 [length] in [0, 1).
        rates: float64 [copies, length].

    Returns:
        bool [copies, length].
    """
    first = uniforms < rates[0]
    return np.stack([first, *(uniforms >= 1 - second for second in rates[1:])])


def syrm_eligible(
    eligible: np.ndarray, is_structural: np.ndarray, extra: float, uniforms: np.ndarray
) -> np.ndarray:
    """SyRM's eligible positions: also the prompt's structural tokens and a share `extra` of its others.

    Args:
        eligible, is_structural: bool [length]; what is not eligible is the prompt.
        uniforms: float64 [length] in [0, 1); they choose the others.

    Returns:
        bool [length].
    """
    return eligible | is_structural | (uniforms < extra)
