r"""Templates of prompts and responses: `{field}` stands for a field of the record, `{field|filter}` for more.

`{{field}}` writes the braces. Everything else is text, so LaTeX needs no escapes: `\boxed{}` stays.
"""

import json
import re
from collections.abc import Callable
from typing import Any

_PLACE = re.compile(r"\{\{([A-Za-z_]\w*)\}\}|\{([A-Za-z_]\w*)((?:\|\w+)*)\}")
_MARKS = re.compile(r"<<[^<>]*>>")


def without_calculator_marks(value: Any) -> str:
    """GSM8K's solutions without the marks of its calculator: `48/2 = <<48/2=24>>24` becomes `48/2 = 24`."""
    return _MARKS.sub("", as_text(value))


def boxed(value: Any) -> str:
    r"""Each element of a list, or the value, in a `\boxed{}`."""
    values = value if isinstance(value, list) else [value]
    return ", ".join(rf"\boxed{{{as_text(each)}}}" for each in values)


def strip(value: Any) -> str:
    """Without the white space around it."""
    return as_text(value).strip()


FILTERS: dict[str, Callable[[Any], str]] = {
    "without_calculator_marks": without_calculator_marks,
    "boxed": boxed,
    "strip": strip,
}


def fields_of(template: str) -> list[str]:
    """The fields that a template needs, in order."""
    return list(dict.fromkeys(found[2] for found in _PLACE.finditer(template) if found[2]))


def filters_of(template: str) -> list[str]:
    """The filters that a template names."""
    return [name for found in _PLACE.finditer(template) if found[3] for name in found[3].split("|")[1:]]


def fill(template: str, values: dict[str, Any]) -> str:
    """The template with the fields' values in it.

    Raises:
        KeyError: where a field is missing.
    """

    def value_of(found: re.Match[str]) -> str:
        if found[1]:
            return f"{{{found[1]}}}"
        value = values[found[2]]
        for name in found[3].split("|")[1:]:
            value = FILTERS[name](value)
        return as_text(value)

    return _PLACE.sub(value_of, template)


def as_text(value: Any) -> str:
    """A value as people write it: whole floats without .0, other values that are no text as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    return json.dumps(value, ensure_ascii=False)
