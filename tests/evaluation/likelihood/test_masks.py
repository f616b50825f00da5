"""Every estimator has the bound as its exact expectation: all of its draws are enumerated."""

from itertools import combinations, pairwise, permutations, product

import numpy as np
import pytest

from mdmscale.evaluation.likelihood.masks import (
    MaskRows,
    Sampler,
    complementary,
    enumerated,
    independent,
    strata_edges,
    stratified,
)
from mdmscale.evaluation.likelihood.plan import BlockRows


def losses_of_all_masks(n: int) -> dict[bytes, float]:
    """The summed loss of each mask: any numbers, as no estimator may rely on a pattern."""
    random = np.random.default_rng(n)
    codes = np.arange(2**n)
    return {((code >> np.arange(n)) & 1 > 0).tobytes(): float(random.exponential()) for code in codes}


def bound(n: int, losses: dict[bytes, float]) -> float:
    """The definition: sum over k of the mean over sets of k tokens of the mean loss of a token."""
    total = 0.0
    for count in range(1, n + 1):
        sets = list(combinations(range(n), count))
        for chosen in sets:
            mask = np.isin(np.arange(n), chosen)
            total += losses[mask.tobytes()] / count / len(sets)
    return total


def estimate(rows: MaskRows, losses: dict[bytes, float]) -> float:
    return sum(weight * losses[mask.tobytes()] for mask, weight in zip(rows.masks, rows.weights, strict=True))


def cells(edges: np.ndarray, *, is_mirrored: bool = False) -> list[float]:
    """The ends of the parts of [0, 1) in which edges[0] + u (edges[1] - edges[0]) has one floor."""
    low, high = edges
    inner = [(m - low) / (high - low) for m in range(int(low) + 1, int(np.ceil(high)))]
    points = [0.0, *(1 - place if is_mirrored else place for place in inner), 1.0]
    return sorted(points)


def joined(*point_lists: list[float]) -> list[tuple[float, float]]:
    """(midpoint, length) of the cells between all points."""
    points = sorted({point for points in point_lists for point in points})
    return [((a + b) / 2, b - a) for a, b in pairwise(points)]


def all_uniforms(name: str, n: int, num: int) -> list[list[tuple[float, float]]]:
    """For each uniform, (value, probability) of every case in which all counts are the same."""
    if name == "independent":
        return [joined(cells(np.array([0, n])))]
    if name == "pairs":
        half = np.linspace(0, n / 2, num + 1)
        return [joined(cells(half[pair : pair + 2])) for pair in range(num)]
    edges = strata_edges(n, num)
    found = []
    for row in range(num):
        own = cells(edges[row : row + 2])
        if row % 2:
            found.append([(0.5, 1.0)])  # an odd row takes the uniform of the row before
        elif row + 1 < num:
            found.append(joined(own, cells(edges[row + 1 : row + 3], is_mirrored=True)))
        else:
            found.append(joined(own))
    return found


CASES = [
    ("independent", independent, 1),
    ("pairs", complementary, 1),
    ("pairs", complementary, 2),
    ("pairs", complementary, 3),
    ("stratified", stratified, 1),
    ("stratified", stratified, 2),
    ("stratified", stratified, 3),
    ("stratified", stratified, 6),
]


@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("name, sampler, num_uniforms", CASES)
def test_the_mean_over_all_draws_is_the_bound(name: str, sampler: Sampler, num_uniforms: int, n: int) -> None:
    losses = losses_of_all_masks(n)
    orders = list(permutations(range(n)))
    mean = 0.0
    for case in product(*all_uniforms(name, n, num_uniforms)):
        uniforms = np.array([value for value, _ in case])
        probability = float(np.prod([length for _, length in case]))
        for order in orders:
            mean += probability / len(orders) * estimate(sampler(n, uniforms, np.array(order)), losses)
    assert mean == pytest.approx(bound(n, losses), abs=1e-10)


@pytest.mark.parametrize("n", [1, 2, 5, 6])
def test_all_masks_together_are_the_bound(n: int) -> None:
    losses, rows = losses_of_all_masks(n), enumerated(n)
    assert len(rows.weights) == 2**n - 1
    assert estimate(rows, losses) == pytest.approx(bound(n, losses), abs=1e-10)


@pytest.mark.parametrize("n, num_strata", [(1, 8), (5, 3), (12, 8), (128, 16), (2000, 4)])
def test_strata_cover_all_counts_with_equal_spread(n: int, num_strata: int) -> None:
    edges = strata_edges(n, num_strata)
    assert edges[0] == 0 and edges[-1] == n and (np.diff(edges) > 0).all()
    assert (np.diff(edges, 2) > -1e-9).all()  # a row with few tokens says least


def test_a_pair_masks_every_token_and_one_twice() -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        rows = complementary(9, random.random(2), random.permutation(9))
        for first in (0, 2):
            assert sorted(rows.masks[first : first + 2].sum(0)) == [1] * 8 + [2]


def test_stratified_rows_mask_other_tokens_than_the_row_before() -> None:
    random = np.random.default_rng(0)
    rows = stratified(60, random.random(8), random.permutation(60))
    counts = rows.masks.sum(1)
    assert counts[0] + counts[1] < 60 and not (rows.masks[0] & rows.masks[1]).any()
    assert rows.masks.sum(0).max() - rows.masks.sum(0).min() <= 1


def test_losses_that_depend_on_the_count_alone_have_no_error_between_masks() -> None:
    """With a loss of 1 nat a token everywhere, every draw of every estimator gives n."""
    random = np.random.default_rng(0)
    for sampler, num in ((stratified, 7), (complementary, 3), (independent, 1)):
        rows = sampler(11, random.random(num), random.permutation(11))
        assert (rows.weights * rows.masks.sum(1)).sum() == pytest.approx(11)


def test_controls_from_the_other_replicate_leave_the_expectation() -> None:
    """All pairs of draws of two replicates, each with its controls from the other's losses."""
    n, num = 3, 2
    random = np.random.default_rng(5)
    table = {((code >> np.arange(n)) & 1 > 0).tobytes(): random.exponential(size=n) for code in range(2**n)}
    draws = []
    for case in product(*all_uniforms("stratified", n, num)):
        uniforms = np.array([value for value, _ in case])
        probability = float(np.prod([length for _, length in case])) / 6
        draws += [(probability, stratified(n, uniforms, np.array(order))) for order in permutations(range(n))]
    mean = plain = 0.0
    for (chance, first), (other_chance, second) in product(draws, repeat=2):
        masks = np.concatenate([first.masks, second.masks])
        weights = np.concatenate([first.weights, second.weights])
        losses = np.array([table[mask.tobytes()] * mask for mask in masks])
        for has_controls in (True, False):
            rows = BlockRows(0, masks, weights, np.repeat([0, 1], num), False, has_controls)
            value = chance * other_chance * rows.estimate(losses)[0]
            mean, plain = (mean + value, plain) if has_controls else (mean, plain + value)
    expected = bound(n, {mask: float((np.frombuffer(mask, bool) * row).sum()) for mask, row in table.items()})
    assert mean == pytest.approx(expected, abs=1e-10) and plain == pytest.approx(expected, abs=1e-10)


def test_controls_take_out_what_makes_tokens_hard_whatever_is_masked() -> None:
    random = np.random.default_rng(1)
    hardness = random.exponential(size=40)
    errors = {True: [], False: []}  # type: dict[bool, list[float]]
    for _ in range(100):
        parts = [stratified(40, random.random(8), random.permutation(40)) for _ in range(2)]
        masks = np.concatenate([part.masks for part in parts])
        weights = np.concatenate([part.weights for part in parts])
        for has_controls, found in errors.items():
            rows = BlockRows(0, masks, weights, np.repeat([0, 1], 8), False, has_controls)
            found.append(rows.estimate(hardness * masks)[0] - hardness.sum())
    assert np.std(errors[True]) < 0.3 * np.std(errors[False])
