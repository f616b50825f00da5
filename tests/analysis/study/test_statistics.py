"""Intervals and detectable differences against closed forms."""

import math

import numpy as np
import pytest
from scipy import stats

from mdmscale.analysis.study.statistics import (
    Difference,
    detectable_difference,
    few_seeds_factor,
    paired_difference,
    pooled_spread,
)


def test_a_constant_difference_has_no_interval() -> None:
    assert paired_difference(np.full((3, 5), 0.25)) == Difference(0.25, 0.25, 0.25)


def test_over_items_alone_it_is_the_normal_interval() -> None:
    """With one seed: the mean of n items, whose bootstrap variance is s^2 / n with s^2 over n."""
    values = stats.norm.ppf((np.arange(400) + 0.5) / 400)
    found = paired_difference(values[None])
    reach = 1.96 * values.std() / math.sqrt(400)
    assert found.mean == pytest.approx(0, abs=1e-12)
    assert (found.low, found.high) == pytest.approx((-reach, reach), rel=0.06)


def test_over_seeds_alone_it_is_students_interval() -> None:
    values = stats.norm.ppf((np.arange(9) + 0.5) / 9)
    found = paired_difference(np.repeat(values[:, None], 4, axis=1))
    reach = stats.t.ppf(0.975, 8) * values.std(ddof=1) / 3
    assert (found.low, found.high) == pytest.approx((-reach, reach), rel=0.06)


def test_over_both_the_variances_add() -> None:
    """Additive effects of 40 seeds and 60 items: the variance of the mean is the sum of both."""
    seeds, items = (stats.norm.ppf((np.arange(n) + 0.5) / n) for n in (40, 60))
    found = paired_difference(seeds[:, None] + 2 * items[None])
    error = math.sqrt(seeds.var() / 40 + 4 * items.var() / 60)
    reach = few_seeds_factor(40) * 1.96 * error
    assert (found.high - found.low) / 2 == pytest.approx(reach, rel=0.06)


def test_pairing_removes_what_seeds_and_items_share() -> None:
    shared = np.random.default_rng(0).normal(size=(4, 50))
    found = paired_difference((shared + 0.1) - shared)
    assert (found.low, found.high) == pytest.approx((0.1, 0.1))


def test_three_seeds_cover_as_often_as_they_claim() -> None:
    """The plain bootstrap of 3 seeds covers about 3 times of 4."""
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        found = paired_difference(rng.normal(size=(3, 1)))
        covered += found.low <= 0 <= found.high
    assert covered / 200 == pytest.approx(0.95, abs=0.04)


def test_the_factor_of_few_seeds() -> None:
    assert few_seeds_factor(1) == 1
    assert few_seeds_factor(3) == pytest.approx(math.sqrt(1.5) * 4.3027 / 1.95996, rel=1e-4)
    assert few_seeds_factor(10_000) == pytest.approx(1, abs=1e-3)


def test_what_seeds_cannot_tell() -> None:
    """t(4) = 2.776: 3 seeds with a spread of 8 points cannot tell differences below 18 points."""
    assert detectable_difference(8, 3) == pytest.approx(2.7764 * 8 * math.sqrt(2 / 3), rel=1e-4)
    assert round(detectable_difference(8, 3)) == 18
    assert detectable_difference(8, 1) == math.inf
    assert detectable_difference(8, 5) < detectable_difference(8, 4)


def test_the_pooled_spread_ignores_differences_between_groups() -> None:
    assert pooled_spread([[1, 3], [11, 13]]) == pytest.approx(math.sqrt(2))
    assert pooled_spread([[1, 3], [5]]) == pytest.approx(math.sqrt(2))
    assert pooled_spread([[1], [9]]) == 0
