"""Strings that a tokenizer cannot encode are found at any depth of a record."""

import json
from typing import Any

import pytest

from mdmscale.system.errors import UserError
from mdmscale.system.unicode import check_strings


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"a": {"b": ["x", {"c": "y\ud800"}]}}, r"f:1: 'a'\.b\[1\]\.c: character 2 is half a surrogate pair"),
        ({"a": {"\udc00": 1}}, r"f:1: a key in 'a': character 1 is half a surrogate pair"),
        ({"\udc00": 1}, r"f:1: a key in the record: character 1 is half a surrogate pair"),
        ({"a": json.loads("[" * 200 + "]" * 200)}, "f:1: nested more than 100 deep"),
    ],
)
def test_strings_are_checked_at_any_depth(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        check_strings(values, "f:1")


def test_a_record_with_all_kinds_of_values_is_fine() -> None:
    check_strings({"a": [1, 2], "b": [], "c": None, "d": 1.5, "e": [{"f": "😀", "g": [[True]]}]}, "f:1")
