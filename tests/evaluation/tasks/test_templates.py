r"""Templates: fields, filters, and text with braces."""

import pytest

from mdmscale.evaluation.tasks.templates import fields_of, fill, filters_of


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{question}!", " q !"),
        ("{question|strip}!", "q!"),
        (r"\boxed{} {{question}} {1}", r"\boxed{} {question} {1}"),
        (r"\frac{1}{2} {number}", r"\frac{1}{2} 3"),
        ("{numbers}", "[1, 2.5]"),
        ("{numbers|boxed}", r"\boxed{1}, \boxed{2.5}"),
        ("{number|boxed}", r"\boxed{3}"),
        ("{marked|without_calculator_marks|strip}", "48/2 = 24"),
    ],
)
def test_fill(template: str, expected: str) -> None:
    values = {"question": " q ", "number": 3.0, "numbers": [1.0, 2.5], "marked": " 48/2 = <<48/2=24>>24 "}
    values["numbers"] = [1, 2.5] if template == "{numbers}" else values["numbers"]
    assert fill(template, values) == expected


def test_a_value_with_braces_is_not_filled_again() -> None:
    assert fill("{a}", {"a": "{b}", "b": "no"}) == "{b}"


def test_what_a_template_names() -> None:
    template = "{b} {a|strip|boxed} {b} {{c}}"
    assert fields_of(template) == ["b", "a"]
    assert filters_of(template) == ["strip", "boxed"]
    with pytest.raises(KeyError):
        fill(template, {"b": 1})
