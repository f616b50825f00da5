r"""How an answer is found in a response: pure functions of a text, chosen by name in a task file.

An extractor returns a text, a list of texts, or None where the response holds no answer. A missing answer is
counted apart from a wrong one: it says that the model has not learnt the form, not that it cannot solve.
"""

import json
import re
from collections.abc import Callable
from typing import Any

Answer = str | list[str]
Extractor = Callable[[str, Any], Answer | None]

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+|\d+)"  # 1,000 or 1000; in 1,2 the comma separates
_MINUS = "\u2212"  # that typesetters use
_SIGN = f"[-+{_MINUS}]"
_AMOUNT = rf"{_SIGN}?\s*[$€£]?\s*{_SIGN}?(?:{_DIGITS}(?:\.\d+)?|\.\d+)"
# A minus after a digit subtracts (16-3), and digits in a word (x2) are no number.
_NUMBER = re.compile(rf"(?<![\w.]){_AMOUNT}|(?<={_SIGN}){_DIGITS}(?:\.\d+)?")


def whole(text: str, _: Any = None) -> str | None:
    """The response without the white space around it."""
    return text.strip() or None


def first_line(text: str, _: Any = None) -> str | None:
    """The first line that is not blank."""
    return next((line.strip() for line in text.splitlines() if line.strip()), None)


def number_after(text: str, marker: str) -> str | None:
    """The number behind the first `marker`, such as the 18 of `#### 18`. A model may ramble on after it.

    Signs, currencies and commas between thousands are understood; a unit or a full stop may follow.
    """
    found = re.search(re.escape(marker) + rf"\s*({_AMOUNT})", text)
    return plain_number(found[1]) if found else None


def last_number(text: str, _: Any = None) -> str | None:
    """The last number of the response."""
    found = _NUMBER.findall(text)
    return plain_number(found[-1]) if found else None


def boxed(text: str, _: Any = None) -> str | None:
    r"""What the last `\boxed{...}` holds. Braces inside it are balanced: `\boxed{\frac{1}{2}}`."""
    found = _boxes(text)
    return found[-1] if found else None


def every_boxed(text: str, _: Any = None) -> list[str] | None:
    r"""What each `\boxed{...}` holds, in order."""
    return _boxes(text) or None


def tag(text: str, name: str) -> str | None:
    """What the last `<name>...</name>` holds."""
    found = re.findall(rf"<{re.escape(name)}>(.*?)</{re.escape(name)}>", text, re.DOTALL)
    return found[-1].strip() or None if found else None


def pattern(text: str, expression: str) -> str | None:
    """The first group of the first match of a regular expression, or the whole match without groups."""
    found = re.search(expression, text, re.DOTALL)
    if found is None:
        return None
    return ((found[1] if found.re.groups else found[0]) or "").strip() or None


def json_list(text: str, _: Any = None) -> list[str] | None:
    """The elements of the last JSON list in the response, as texts."""
    decoder, last, place = json.JSONDecoder(), None, 0
    while (place := text.find("[", place)) >= 0:
        try:
            value, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            place += 1
            continue
        last = value
    return None if not last else [each if isinstance(each, str) else json.dumps(each) for each in last]


EXTRACTORS: dict[str, Extractor] = {
    "whole": whole,
    "first_line": first_line,
    "number_after": number_after,
    "last_number": last_number,
    "boxed": boxed,
    "every_boxed": every_boxed,
    "tag": tag,
    "pattern": pattern,
    "json_list": json_list,
}

# Those that need an argument, and what it is.
NEED_TEXT = {"number_after": "marker", "tag": "name", "pattern": "regular expression"}


def plain_number(text: str) -> str:
    """A number as Python reads it: without currency, spaces and commas."""
    return re.sub(r"[$€£,\s+]", "", text).replace(_MINUS, "-")


def _boxes(text: str) -> list[str]:
    """What the closed boxes hold; empty ones and those that are never closed are left out."""
    found = []
    for opening in re.finditer(r"\\boxed\s*\{", text):
        depth = 1
        for place in range(opening.end(), len(text)):
            escaped = text[place - 1] == "\\"
            depth += 0 if escaped else {"{": 1, "}": -1}.get(text[place], 0)
            if depth == 0:
                found.append(text[opening.end() : place].strip())
                break
    return [each for each in found if each]
