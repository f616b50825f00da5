"""Special tokens that are written out in a text: find them, and keep the text of a user from being read so.

A chat template writes special tokens, and so may the messages that it renders. Only the template's may be
read: else a message could end its own turn. `hide` puts a private character in place of each special token of
the messages. After rendering, whatever special token stands there in full is the template's own.
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from mdmscale.system.errors import UserError

# Unicode's plane 16 is for private use. No text of a data set should need it; one that does is refused.
_FIRST_HIDDEN = 0x100000  # of special tokens in messages
_FIRST_READ = 0x104000  # of special tokens that the template wrote
_FIRST_MARK = 0x108000  # of the edges of messages, see `mark`
_PRIVATE = re.compile("[\U00100000-\U0010fffd]")
_HIDDEN = re.compile("[\U00100000-\U00103fff]")
MARKS = re.compile("[\U00108000-\U0010fffd]")


def special_texts(tokenizer: Any) -> tuple[str, ...]:
    """The texts of the tokenizer's special tokens, long ones first, as a tokenizer prefers them."""
    tokens = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return tuple(sorted((text for text in tokens if text), key=lambda text: (-len(text), text)))


def find_special(tokenizer: Any, text: str) -> str | None:
    """The first special token that is written out in a text, and that plain text does not make."""
    found = (match[0] for match in special_pattern(special_texts(tokenizer)).finditer(text))
    return next((special for special in found if not is_ordinary(tokenizer, special)), None)


def is_ordinary(tokenizer: Any, special: str) -> bool:
    """Whether a special token is an ordinary word of the vocabulary too, as DiffuLLaMA's mask token is."""
    plain = tokenizer(special, add_special_tokens=False, split_special_tokens=True, verbose=False).input_ids
    return tokenizer.convert_tokens_to_ids(special) in plain


@lru_cache
def special_pattern(texts: tuple[str, ...]) -> re.Pattern[str]:
    """Matches any of the texts."""
    return re.compile("|".join(map(re.escape, texts)) or r"(?!)")


def mark(number: int) -> str:
    """A character that no text and no token has, for the `number`-th edge."""
    return chr(_FIRST_MARK + number)


def hide(tokenizer: Any, value: Any) -> Any:
    """A string, or the strings of a JSON value, with a private character for each special token.

    Raises:
        UserError: where a text holds such a character already.
    """
    texts = special_texts(tokenizer)
    characters = {text: chr(_FIRST_HIDDEN + number) for number, text in enumerate(texts)}
    return _map_texts(value, lambda text: _hidden(text, special_pattern(texts), characters))


def is_hidden_in(text: str) -> bool:
    """Whether a text holds hidden special tokens."""
    return _HIDDEN.search(text) is not None


def unhide(tokenizer: Any, text: str) -> str:
    """A text with its hidden special tokens written out again."""
    texts = special_texts(tokenizer)
    return _HIDDEN.sub(lambda found: texts[ord(found[0]) - _FIRST_HIDDEN], text)


def literal(tokenizer: Any, text: str) -> str:
    """A rendered text with a private character for each token of the template, and messages in full."""
    texts = special_texts(tokenizer)
    numbers = {special: number for number, special in enumerate(texts)}
    read = special_pattern(texts).sub(lambda found: read_character(numbers[found[0]]), text)
    return unhide(tokenizer, read)


def read_character(number: int) -> str:
    """The character that stands for the special token `special_texts(...)[number]` of a template."""
    return chr(_FIRST_READ + number)


def _hidden(text: str, pattern: re.Pattern[str], characters: Mapping[str, str]) -> str:
    if found := _PRIVATE.search(text):
        raise UserError(
            f"holds the private character U+{ord(found[0]):X}, which stands for special tokens while a chat "
            "template is rendered; replace it"
        )
    return pattern.sub(lambda found: characters[found[0]], text)


def _map_texts(value: Any, change: Any) -> Any:
    match value:
        case str():
            return change(value)
        case dict():
            return {_map_texts(key, change): _map_texts(item, change) for key, item in value.items()}
        case list():
            return [_map_texts(item, change) for item in value]
    return value
