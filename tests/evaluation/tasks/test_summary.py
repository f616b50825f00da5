"""Accuracy with its interval, missing answers, tokens a forward, and the area under their curve."""

import math
from typing import Any

import pytest

from mdmscale.evaluation.statistics import wilson
from mdmscale.evaluation.tasks.summary import aup, summarise, with_aup


def item(correct: bool, extracted: Any = "7", **values: Any) -> dict[str, Any]:
    base = {"correct": correct, "points": float(correct), "possible": 1, "extracted": extracted}
    return {**base, "num_forwards": 4, "num_tokens": 8, "seconds": 0.5, **values}


def test_the_summary_of_items() -> None:
    entry = summarise("t", "", [item(True), item(False), item(False, None, num_tokens=2, num_forwards=6)])
    assert entry["accuracy"] == pytest.approx(1 / 3) and entry["num_items"] == 3
    assert (entry["low"], entry["high"]) == wilson(1, 3)
    assert entry["no_answer"] == pytest.approx(1 / 3)
    assert entry["tokens_per_forward"] == 18 / 14 and entry["forwards_per_text"] == pytest.approx(14 / 3)
    assert entry["seconds"] == 1.5


def test_the_score_of_sets_weighs_elements_as_the_papers_accuracy_does() -> None:
    items = [item(True, points=1, possible=1), item(False, points=1, possible=3)]
    entry = summarise("t", "", items)
    assert entry["accuracy"] == 0.5 and entry["score"] == 0.5
    entry = summarise("t", "", [item(True, points=3, possible=3), item(False, points=0, possible=1)])
    assert entry["accuracy"] == 0.5 and entry["score"] == 0.75


def test_the_area_at_constant_accuracy_is_that_of_a_rectangle() -> None:
    assert aup([(1, 80), (2, 80), (5, 80)]) == pytest.approx(5 * 80)
    assert aup([(5, 80), (1, 80)]) == pytest.approx(5 * 80)
    assert aup([(3, 80)]) == 240


def test_the_area_of_two_points_in_closed_form() -> None:
    weighted = 76 * math.exp(-3 * (1 - 76 / 80))
    assert aup([(1, 80), (3, 76)]) == pytest.approx(80 + (3 - 1) / 2 * (80 + weighted))


def test_points_that_lose_more_than_five_percent_do_not_count() -> None:
    assert aup([(1, 80), (2, 75)]) > aup([(1, 80), (9, 74.9)]) == 80
    assert aup([(1, 70), (2, 80), (3, 66)]) == pytest.approx(
        70 + (80 + 70 * math.exp(-3 / 8)) / 2 + (80 + 66 * math.exp(-3 * 14 / 80)) / 2
    )


def test_the_best_accuracy_may_be_another_methods() -> None:
    scale = math.exp(-3 * (1 - 40 / 80))
    assert aup([(1, 40), (2, 40)], best=80) == pytest.approx(40 + 40 * scale)
    assert aup([(1, 90), (2, 90)], best=80) == 180  # the weight is at most 1


def test_without_a_right_answer_or_a_token_there_is_no_area() -> None:
    assert aup([(1, 0), (2, 0)]) == 0
    assert aup([(0, 50)]) == 0


def test_only_a_task_with_several_settings_has_an_area() -> None:
    entries = [
        {"task": task, "tokens_per_forward": rate, "accuracy": 0.5}
        for task, rate in (("a", 1.0), ("a", 2.0), ("b", 1.0))
    ]
    assert [entry.get("aup") for entry in with_aup(entries)] == [100, 100, None]
