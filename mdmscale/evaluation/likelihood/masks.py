"""Which tokens of a target to mask, and how the losses are weighed: estimators of the likelihood bound.

For a target x of n tokens

    -log p(x) <= sum over k = 1..n of f(k),    f(k) = E over |S| = k of the mean over i in S of CE_i(x, S)

where S is a uniformly random set of k masked tokens (LLaDA, arXiv 2502.09992, equation 14). Every function
here returns masks and weights such that `sum over rows of weight * sum over masked i of CE_i` has the right
side as its exact expectation. They differ in variance only. Randomness comes in as uniforms and permutations.

Legend: n = tokens of the target; rows = masks.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import comb

# The spread of CE over subsets of k of n tokens is modelled as 1/k - 1/n + DRIFT. The first part is that of a
# mean of k tokens; DRIFT stands for what f(k) itself changes within a stratum.
DRIFT = 0.05


@dataclass(frozen=True, eq=False)
class MaskRows:
    """masks: bool [rows, n], True where a token is masked. weights: float64 [rows]."""

    masks: np.ndarray
    weights: np.ndarray


def enumerated(n: int) -> MaskRows:
    """Every non-empty set of tokens, 2^n - 1 rows: the bound itself, without an error."""
    codes = np.arange(1, 2**n)
    masks = (codes[:, None] >> np.arange(n)) & 1 > 0  # [rows, n]
    counts = masks.sum(1)
    return MaskRows(masks, 1 / (counts * comb(n, counts)))


def independent(n: int, uniforms: np.ndarray, permutation: np.ndarray) -> MaskRows:
    """LLaDA's Monte Carlo: one row, whose count is uniform over 1..n. uniforms: [1]."""
    count = int(n * uniforms[0]) + 1
    return MaskRows(_arc(permutation, 0, count)[None], np.array([n / count]))


def complementary(n: int, uniforms: np.ndarray, permutation: np.ndarray) -> MaskRows:
    """Pairs of rows with l and n + 1 - l tokens. The pairs divide the lower half of the counts into strata.

    The first row of a pair has the first l tokens of a rotated permutation, the second one the n + 1 - l last
    ones. So a pair masks every token once, and one of them twice.

    Args:
        uniforms: [pairs] in [0, 1), each places a pair within its stratum.
    """
    num_pairs = len(uniforms)
    masks, weights = [], []
    for pair, uniform in enumerate(uniforms):
        first = int(n * (pair + uniform) / (2 * num_pairs)) + 1
        rotated = np.roll(permutation, -(pair * n // num_pairs))
        for ordered, count in ((rotated, first), (rotated[::-1], n + 1 - first)):
            masks.append(_arc(ordered, 0, count))
            weights.append(n / (count * 2 * num_pairs))
    return MaskRows(np.array(masks), np.array(weights))


def stratified(n: int, uniforms: np.ndarray, permutation: np.ndarray) -> MaskRows:
    """A row for each stratum of counts; together the strata cover all counts.

    The strata are narrower where a row says less (see `strata_edges`), and stratum [a, b) of the line [0, n)
    has weight b - a. Neighbouring strata share a uniform, as u and 1 - u. All rows share a permutation: each
    masks the tokens that follow those of the row before, around a circle, so that rows with few tokens mask
    different ones. A row's own mask is a uniformly random set of its count whatever the other rows are, so
    the expectation is exact.

    Args:
        uniforms: [rows] in [0, 1).
    """
    edges = strata_edges(n, len(uniforms))
    widths = np.diff(edges)
    places = np.where(np.arange(len(uniforms)) % 2 == 0, uniforms, 1 - np.roll(uniforms, 1))
    counts = np.clip((edges[:-1] + places * widths).astype(int) + 1, 1, n)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    masks = [_arc(permutation, start, count) for start, count in zip(starts, counts, strict=True)]
    return MaskRows(np.array(masks), widths / counts)


def strata_edges(n: int, num_strata: int) -> np.ndarray:
    """Edges 0 = e_0 < ... < e_num = n of strata of the counts, float64 [num_strata + 1].

    Count k is the part [k - 1, k) of the line, so that a stratum may begin or end within a count.
    The error of a stratum is its width times the spread of a row, which is about sqrt(1/k - 1/n + DRIFT): all
    strata get the same.
    """
    counts = np.arange(1, n + 1)
    spread = np.sqrt(1 / counts - 1 / n + DRIFT)
    mass = np.concatenate([[0.0], np.cumsum(spread)])
    edges = np.interp(np.linspace(0, mass[-1], num_strata + 1), mass, np.arange(n + 1))
    edges[-1] = n
    return edges


def _arc(permutation: np.ndarray, start: int, count: int) -> np.ndarray:
    """The mask of `count` tokens of a permutation from `start` on, around its end. bool [n]."""
    n = len(permutation)
    mask = np.zeros(n, dtype=bool)
    mask[permutation[(start + np.arange(count)) % n]] = True
    return mask


Sampler = Callable[[int, np.ndarray, np.ndarray], MaskRows]

SAMPLERS: dict[str, Sampler] = {
    "stratified": stratified,  # with controls, see plan.BlockRows.estimate
    "pairs": complementary,
    "independent": independent,
}
