r"""How an answer is compared with the expected one: pure functions, chosen by name in a task file."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

from mdmscale.evaluation.tasks.extraction import Answer, plain_number


@dataclass(frozen=True)
class Score:
    """What an answer is worth.

    points: of `possible`. A set has a point for each expected element; everything else has one.
    correct: whether the answer is right as a whole.
    """

    points: float
    possible: int
    correct: bool


Scorer = Callable[[Answer, Answer, float], Score]


def exact(found: Answer, expected: Answer, _: float = 0.0) -> Score:
    """The same text, apart from white space around it."""
    return _one(_text(found).strip() == _text(expected).strip())


def text(found: Answer, expected: Answer, tolerance: float = 0.0) -> Score:
    r"""The same text or number, whatever the case, `\text{}`, dollar signs and a full stop at the end."""
    return _one(_equal(_text(found), _text(expected), tolerance))


def number(found: Answer, expected: Answer, tolerance: float = 0.0) -> Score:
    """The same number, up to `tolerance`: 18, 18.0 and $18 are the same, and so are 1,800 and 1800."""
    first, second = _number(_text(found)), _number(_text(expected))
    return _one(first is not None and second is not None and _near(first, second, tolerance))


def match_set(found: Answer, expected: Answer, tolerance: float = 0.0) -> Score:
    """The same elements in any order; a point for each expected one that is found.

    Each found element is compared with the expected ones that are still free, and takes the first it equals,
    as the paper's authors do for HiTab. Their accuracy is the sum of the points over that of the possible
    ones. Here `correct` asks for more: that nothing is missing, and nothing too much.
    """
    free = _elements(expected)
    possible, num_found, points = len(free), 0, 0
    for element in _elements(found):
        num_found += 1
        place = next((at for at, each in enumerate(free) if _equal(element, each, tolerance)), None)
        if place is not None:
            del free[place]
            points += 1
    return Score(points, possible, points == possible == num_found)


SCORERS: dict[str, Scorer] = {"exact": exact, "text": text, "number": number, "set": match_set}


def can_be_scored(scorer: str, expected: Answer) -> bool:
    """Whether any answer could be right: a number is compared with a number, a set is not empty."""
    if scorer == "number":
        return _number(_text(expected)) is not None
    return any(each.strip() for each in _elements(expected))


def _one(correct: bool) -> Score:
    return Score(float(correct), 1, correct)


def _text(answer: Answer) -> str:
    return answer if isinstance(answer, str) else ", ".join(answer)


def _elements(answer: Answer) -> list[str]:
    return [answer] if isinstance(answer, str) else list(answer)


def _equal(found: str, expected: str, tolerance: float) -> bool:
    """Numbers that are nearer than `tolerance`, or the same words."""
    first, second = _bare(found), _bare(expected)
    numbers = _number(first), _number(second)
    if numbers[0] is None or numbers[1] is None:
        return first == second
    return _near(numbers[0], numbers[1], tolerance)


def _near(first: Decimal, second: Decimal, tolerance: float) -> bool:
    return first == second or abs(first - second) < Decimal(str(tolerance))


def _bare(text: str) -> str:
    r"""A text in lower case without what LaTeX, percentages and sentences put around it."""
    text = re.sub(r"\\(?:text|mathrm|mathbf)\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"[\\%$]", "", text)
    return " ".join(text.split()).rstrip(".").strip().lower()


def _number(text: str) -> Decimal | None:
    try:
        value = Decimal(plain_number(text))
    except InvalidOperation:
        return None
    return value if value.is_finite() else None
