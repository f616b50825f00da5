"""Texts as token ids with the place of each token, and the tokens of a text that continues another one."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

from mdmscale.models.special_tokens import is_hidden_in, literal, read_character, special_texts
from mdmscale.system.errors import UserError


@dataclass(frozen=True)
class Tokens:
    """The token ids of a text, or of its end."""

    ids: list[int]
    encoding: Any  # of the `tokenizers` library; None from a tokenizer that is written in Python
    shift: int = 0  # where the text begins

    @property
    def spans(self) -> list[tuple[int, int]] | None:
        """The (start, stop) of each token; None where the tokenizer cannot tell. It is slow."""
        if self.encoding is None:
            return None
        offsets = self.encoding.offsets[len(self.encoding.ids) - len(self.ids) :]
        return [(start + self.shift, stop + self.shift) for start, stop in offsets]

    def tail(self, first: int, shift: int) -> "Tokens":
        """Tokens `first`, ...; of a text that begins at `shift`."""
        return Tokens(self.ids[first:], self.encoding, shift)


class Reader(Protocol):
    """A way to read a text as tokens. It adds none, neither in front nor at the end."""

    def encode(self, text: str) -> Tokens: ...

    def length(self, text: str) -> int:
        """The length of a text, in the characters that spans count."""


@dataclass(frozen=True)
class TextReader:
    """Special tokens that are written out are read, or they are plain text."""

    tokenizer: Any
    is_read: bool

    def encode(self, text: str) -> Tokens:
        encoded = self.tokenizer(
            text,
            add_special_tokens=False,
            split_special_tokens=not self.is_read,
            return_attention_mask=False,
            verbose=False,
        )
        return Tokens(list(encoded["input_ids"]), encoded.encodings[0] if encoded.encodings else None)

    def length(self, text: str) -> int:
        return len(text)


class TemplateReader:
    """Reads a rendered text in which special tokens of messages are hidden: the template's are read, only.

    It is a copy of the tokenizer in which every special token is plain text, with a private character for
    each as an added token. So spaces, normalisation and merges beside a token are as in the tokenizer itself.
    """

    def __init__(self, tokenizer: Any) -> None:
        from tokenizers import AddedToken, Tokenizer

        self._tokenizer = tokenizer
        self._copy = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._copy.no_truncation()
        self._copy.no_padding()
        tokens = {token.content: token for token in tokenizer.added_tokens_decoder.values()}
        self._ids = {}
        for number, text in enumerate(special_texts(tokenizer)):
            character, token = read_character(number), tokens[text]
            flags = {name: getattr(token, name) for name in ("single_word", "lstrip", "rstrip", "normalized")}
            self._copy.add_tokens([AddedToken(character, special=False, **flags)])
            self._ids[self._copy.token_to_id(character)] = int(tokenizer.convert_tokens_to_ids(text))
        self._copy.encode_special_tokens = True

    def encode(self, text: str) -> Tokens:
        encoded = self._copy.encode(literal(self._tokenizer, text), add_special_tokens=False)
        return Tokens([self._ids.get(token, token) for token in encoded.ids], encoded)

    def length(self, text: str) -> int:
        return len(literal(self._tokenizer, text))


def rendered_reader(tokenizer: Any, rendered: str) -> Reader:
    """How to read what a chat template has rendered (models/chat.py).

    Raises:
        UserError: where messages hold special tokens, and the tokenizer is written in Python.
    """
    if not is_hidden_in(rendered):
        return TextReader(tokenizer, is_read=True)
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise UserError(
            "special tokens are written out in the messages, and only a tokenizer with a tokenizer.json can "
            "keep them from being read"
        )
    return _template_reader(tokenizer, len(tokenizer))


@lru_cache(maxsize=2)  # to copy a large vocabulary takes a second
def _template_reader(tokenizer: Any, num_tokens: int) -> TemplateReader:
    return TemplateReader(tokenizer)  # `num_tokens`: a tokenizer with a new token needs another copy


def encode_continued(tokenizer: Any, reader: Reader, before: str, after: str) -> tuple[Tokens, Tokens]:
    """The tokens of a text, and of another one that continues it. Spans count from the first one's start.

    Those of the first are the same whatever follows, as sampling knows no more. Those of the second are the
    rest of the joined text's, where those begin with the first's. Elsewhere a token would cross the border,
    and the second text is encoded alone. Many tokenizers then put a space in front, as at the start of every
    text. Where decoding shows that space, it is encoded behind a newline, which is cut off again.
    """
    first, joined = reader.encode(before), reader.encode(before + after)
    size = len(first.ids)
    if joined.ids[:size] == first.ids:
        return first, joined.tail(size, 0)
    length = reader.length(before)
    newline, behind = reader.encode("\n"), reader.encode("\n" + after)
    choices = [reader.encode(after).tail(0, length)]
    if behind.ids[: len(newline.ids)] == newline.ids:
        choices.append(behind.tail(len(newline.ids), length - 1))
    wanted = _decode(tokenizer, joined.ids)
    right = (choice for choice in choices if _decode(tokenizer, first.ids + choice.ids) == wanted)
    return first, next(right, choices[-1])


def _decode(tokenizer: Any, token_ids: list[int]) -> str:
    return tokenizer.decode(token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
