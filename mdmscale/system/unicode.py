"""Text that can be written as UTF-8, and therefore encoded by a tokenizer."""

from typing import Any

from mdmscale.system.errors import UserError

DEEPEST = 100  # what chat templates can walk through without Python's limit on recursion


def check_utf8(text: str, where: str) -> str:
    """Return `text` if a tokenizer can encode it.

    Raises:
        UserError: where the text has half a surrogate pair, which JSON escapes can write but UTF-8 cannot.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: character {error.start + 1} is half a surrogate pair, so this is not Unicode text"
        ) from None
    return text


def check_strings(values: Any, where: str) -> None:
    """Check all strings of a record, or of a part of one, at any depth, as `check_utf8` does, keys included.

    Raises:
        UserError: naming `where` and the place in the record; also where it is nested more than DEEPEST deep.
    """
    waiting: list[tuple[Any, str, int]] = [(values, "", 0)]  # a stack: recursion has a limit
    while waiting:
        value, place, depth = waiting.pop()
        if depth > DEEPEST:
            raise UserError(f"{where}: nested more than {DEEPEST} deep; no chat needs that")
        if isinstance(value, str):
            check_utf8(value, f"{where}: {place}")
        elif isinstance(value, dict):
            for key, item in value.items():
                check_utf8(str(key), f"{where}: a key in {place or 'the record'}")
                waiting.append((item, f"{place}.{key}" if place else repr(key), depth + 1))
        elif isinstance(value, list | tuple) and not (value and type(value[0]) is int):
            # a list of token ids is long and holds no text; encode_record checks that all are integers
            waiting += [(item, f"{place}[{number}]", depth + 1) for number, item in enumerate(value)]
