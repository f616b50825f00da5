r"""What counts as the answer of a response: signs, commas, currencies, units, nested braces, no answer."""

import pytest

from mdmscale.evaluation.tasks.extraction import (
    EXTRACTORS,
    NEED_TEXT,
    boxed,
    every_boxed,
    first_line,
    json_list,
    last_number,
    number_after,
    pattern,
    tag,
    whole,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("so 9 * 2 = 18\n#### 18", "18"),
        ("####18", "18"),
        ("#### 18.", "18"),
        ("#### 18.0", "18.0"),
        ("#### .5", ".5"),
        ("#### -3", "-3"),
        ("#### \u22123", "-3"),
        ("#### +3", "3"),
        ("#### 1,000", "1000"),
        ("#### 1,234,567.5 km", "1234567.5"),
        ("#### 1,2", "1"),
        ("#### $18", "18"),
        ("#### $ 1,800.50", "1800.50"),
        ("#### -$18", "-18"),
        ("#### $-18", "-18"),
        ("#### \u20ac5", "5"),
        ("#### 18 eggs", "18"),
        ("#### 18%", "18"),
        ("####\n18", "18"),
        ("#### 18\nQuestion: ...\n#### 7", "18"),
        ("#### none\n#### 7", "7"),
        ("####", None),
        ("#### eighteen", None),
        ("The answer is 18.", None),
        ("", None),
    ],
)
def test_the_number_after_a_marker(text: str, expected: str | None) -> None:
    assert number_after(text, "####") == expected


def test_a_marker_is_text_and_no_pattern() -> None:
    assert number_after("A. 3 (ans.) 4", "(ans.)") == "4"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("16-3 = 13", "13"),
        ("16-3", "3"),
        ("it is -3", "-3"),
        ("(-3)", "-3"),
        ("that costs $1,250.75.", "1250.75"),
        ("x2 and v3", None),
        ("12 then x2", "12"),
        ("no number", None),
        ("1. first 2. second", "2"),
    ],
)
def test_the_last_number(text: str, expected: str | None) -> None:
    assert last_number(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"\boxed{18}", "18"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\text{A}} or \boxed{ B }", "B"),
        (r"\boxed {C}", "C"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{1} and \boxed{2", "1"),
        (r"\boxed{", None),
        (r"\boxed{}", None),
        (r"\boxed 3", None),
        ("boxed{3}", None),
        ("", None),
    ],
)
def test_the_last_box(text: str, expected: str | None) -> None:
    assert boxed(text) == expected


def test_every_box_of_a_set() -> None:
    assert every_boxed(r"\boxed{1}, \boxed{two} and \boxed{\frac{3}{4}}") == ["1", "two", r"\frac{3}{4}"]
    assert every_boxed("1 and 2") is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>5</think><answer> 7 </answer>", "7"),
        ("<answer>1</answer> no, <answer>2\n3</answer>", "2\n3"),
        ("<answer></answer>", None),
        ("<answer>7", None),
    ],
)
def test_a_tag(text: str, expected: str | None) -> None:
    assert tag(text, "answer") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('so [1, 2] or ["a", 2.5, null]', ["a", "2.5", "null"]),
        ("[[1, 2], 3]", ["[1, 2]", "3"]),
        ("[1, 2", None),
        ("[]", None),
        ("none", None),
    ],
)
def test_the_last_json_list(text: str, expected: list[str] | None) -> None:
    assert json_list(text) == expected


def test_a_pattern_gives_its_group_or_all_of_it() -> None:
    assert pattern("answer: B.", r"answer: (\w)") == "B"
    assert pattern("answer: B.", r"[A-D]\.") == "B."
    assert pattern("answer", "x") is None


def test_the_whole_and_its_first_line() -> None:
    assert whole("  a\n b ") == "a\n b"
    assert first_line("\n  a \nb") == "a"
    assert whole(" \n") is None and first_line(" \n") is None


@pytest.mark.parametrize("name", EXTRACTORS)
def test_an_empty_response_has_no_answer(name: str) -> None:
    assert EXTRACTORS[name]("", "x" if name in NEED_TEXT else None) is None
