r"""What an answer is worth."""

import pytest

from mdmscale.evaluation.tasks.extraction import Answer
from mdmscale.evaluation.tasks.scoring import SCORERS, Score, can_be_scored, exact, match_set, number, text


@pytest.mark.parametrize(
    ("found", "expected", "right"),
    [
        ("18", "18", True),
        ("18.0", "18", True),
        ("018", "18", True),
        ("18.5", "18", False),
        ("-18", "18", False),
        ("1,000", "1000", True),
        ("$18", "18", True),
        ("eighteen", "18", False),
        ("", "18", False),
        ("nan", "nan", False),
        ("inf", "inf", False),
        ("1e3", "1000", True),
    ],
)
def test_numbers(found: str, expected: str, right: bool) -> None:
    assert number(found, expected) == Score(float(right), 1, right)


def test_the_tolerance_of_numbers_is_exclusive_and_decimal() -> None:
    """|0.3 - 0.2| is below 0.1 in binary, and equal to it in decimal."""
    assert not number("0.3", "0.2", 0.1).correct
    assert number("0.29", "0.2", 0.1).correct


@pytest.mark.parametrize(
    ("found", "expected", "right"),
    [
        ("B", "b", True),
        (r"\text{B}", "B", True),
        ("B.", "B", True),
        ("$12$", "12.0", True),
        (r"50\%", "50", True),
        ("new  york", "New York", True),
        (r"\frac{1}{2}", r"\frac{1}{2}", True),
        (r"\frac{1}{2}", r"\frac{1}{3}", False),
        ("A", "B", False),
    ],
)
def test_texts(found: str, expected: str, right: bool) -> None:
    assert text(found, expected).correct is right


def test_exact_is_word_for_word() -> None:
    assert exact(" 12\n", "12").correct
    assert not exact("12.0", "12").correct and not exact("a", "A").correct


@pytest.mark.parametrize(
    ("found", "expected", "points", "correct"),
    [
        (["1", "2"], ["2", "1"], 2, True),
        (["1"], ["1", "2"], 1, False),
        (["1", "2", "3"], ["1", "2"], 2, False),
        (["1", "1"], ["1", "2"], 1, False),
        (["1", "1"], ["1", "1"], 2, True),
        (["52.109"], ["52.1"], 1, True),
        (["52.11"], ["52.1"], 0, False),
        (["52.1%"], ["52.1"], 1, True),
        ([r"\text{Female Workers}"], ["female workers"], 1, True),
        ("7", ["7"], 1, True),
        ([], ["7"], 0, False),
    ],
)
def test_sets(found: Answer, expected: list[str], points: int, correct: bool) -> None:
    assert match_set(found, expected, 0.01) == Score(points, len(expected), correct)


def test_each_expected_element_is_matched_once_in_the_order_of_the_answer() -> None:
    """1.005 is near both, and takes the first; 1.0 then has none left that is near."""
    assert match_set(["1.005", "1.0"], ["1.0", "1.012"], 0.01).points == 1


@pytest.mark.parametrize("name", SCORERS)
def test_the_expected_answer_itself_has_all_points(name: str) -> None:
    answer: Answer = ["12", "13"] if name == "set" else "12"
    score = SCORERS[name](answer, answer, 0.0)
    assert score.correct and score.points == score.possible


def test_what_cannot_be_scored() -> None:
    assert can_be_scored("number", "1,000") and not can_be_scored("number", "a dozen")
    assert can_be_scored("set", ["", "a"]) and not can_be_scored("set", [])
    assert not can_be_scored("exact", "  ")
