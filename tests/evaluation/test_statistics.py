"""Errors and intervals against closed forms, other formulas and simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from mdmscale.evaluation.statistics import (
    bootstrap,
    difference,
    mcnemar,
    mean,
    ratio,
    ratio_difference,
    wilson,
)


@pytest.fixture(scope="module")
def values() -> np.ndarray:
    """Two correlated columns of 40 items, float64 [2, 40]."""
    draws = np.random.default_rng(0).normal(size=(3, 40))
    return draws[0] * 5 + draws[1:] + 2


def test_mean_is_scipys(values: np.ndarray) -> None:
    found, expected = mean(values[0]), stats.ttest_1samp(values[0], 0)
    assert found.standard_error == pytest.approx(stats.sem(values[0]))
    assert found.p_value() == pytest.approx(expected.pvalue)
    assert found.interval() == pytest.approx(tuple(expected.confidence_interval(0.95)))


def test_difference_is_the_paired_t_test(values: np.ndarray) -> None:
    found, expected = difference(*values), stats.ttest_rel(values[1], values[0])
    assert found.p_value() == pytest.approx(expected.pvalue)
    assert found.interval() == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert found.standard_error < 0.5 * math.hypot(
        mean(values[0]).standard_error, mean(values[1]).standard_error
    )


def test_ratio_is_the_mean_where_all_items_are_as_long(values: np.ndarray) -> None:
    found, expected = ratio(values[0] * 7, np.full(40, 7)), mean(values[0])
    assert (found.value, found.standard_error) == pytest.approx((expected.value, expected.standard_error))


def test_a_ratios_error_is_the_jackknifes(values: np.ndarray) -> None:
    lengths = np.random.default_rng(1).integers(40, 60, 40)
    left_out = [np.delete(values[0], item).sum() / np.delete(lengths, item).sum() for item in range(40)]
    jackknife = math.sqrt(39 / 40 * np.square(left_out - np.mean(left_out)).sum())
    assert ratio(values[0], lengths).standard_error == pytest.approx(jackknife, rel=0.02)


def test_a_difference_of_ratios_with_equal_lengths_is_a_ratio_of_differences(values: np.ndarray) -> None:
    lengths = np.arange(10, 50)
    found = ratio_difference((values[0], lengths), (values[1], lengths))
    expected = ratio(values[1] - values[0], lengths)
    assert (found.value, found.standard_error) == pytest.approx((expected.value, expected.standard_error))


def test_a_difference_of_ratios_with_other_lengths_agrees_with_a_bootstrap(values: np.ndarray) -> None:
    random = np.random.default_rng(2)
    lengths = random.integers(40, 60, (2, 40))

    def statistic(items: np.ndarray) -> float:
        ratios = values[:, items].sum(1) / lengths[:, items].sum(1)
        return float(ratios[1] - ratios[0])

    found = ratio_difference((values[0], lengths[0]), (values[1], lengths[1]))
    assert found.value == pytest.approx(statistic(np.arange(40)))
    low, high = bootstrap(statistic, 40)
    assert (high - low) / 2 == pytest.approx(found.standard_error * 1.96, rel=0.15)


@pytest.mark.parametrize("successes, n", [(0, 10), (3, 10), (10, 10), (50, 100)])
def test_wilson_is_scipys(successes: int, n: int) -> None:
    expected = stats.binomtest(successes, n).proportion_ci(method="wilson")
    assert wilson(successes, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_without_items_a_share_may_be_anything() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


def test_mcnemar_is_a_sign_test() -> None:
    assert mcnemar(0, 5) == pytest.approx(2 / 32)
    assert mcnemar(0, 0) == 1.0 and mcnemar(4, 4) == 1.0


def test_one_item_has_no_error() -> None:
    one = mean([2.0])
    assert one.value == 2 and all(map(math.isnan, (one.standard_error, *one.interval(), one.p_value())))


def test_equal_items_have_no_error_and_a_sure_difference() -> None:
    assert difference([1, 2], [1, 2]).p_value() == 1 and difference([1, 2], [2, 3]).p_value() == 0


def test_a_bootstrap_follows_its_seed(values: np.ndarray) -> None:
    def statistic(items: np.ndarray) -> float:
        return float(values[0, items].mean())

    assert bootstrap(statistic, 40) == bootstrap(statistic, 40)
    assert bootstrap(statistic, 40) != bootstrap(statistic, 40, seed=1)
