"""Regular expressions of users and of folders, which could search for ever: they run with limits."""

import re

from mdmscale.system.bounded import bounded


def pattern_problem(pattern: str) -> str | None:
    """Why `pattern` is no regular expression; None if it is one."""
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        return str(error)
    return None


def found_in(pattern: str, texts: list[str]) -> list[int]:
    """The numbers of the texts in which `pattern` is found.

    Raises:
        BoundedError: where it is no regular expression, or takes too long.
    """
    return bounded(f"{__name__}:_found_in", pattern, texts)


def _found_in(pattern: str, texts: list[str]) -> list[int]:
    compiled = re.compile(pattern)
    return [number for number, text in enumerate(texts) if compiled.search(text)]
