"""Prompts as token ids: the one rule, for SFT data and for sampling.

A model answers best to the tokens that it was trained on, so training and sampling must encode a prompt
alike. Three kinds of text reach a tokenizer:

- a plain prompt opens as the tokenizer opens texts (BOS) and stays open (no EOS), as the response follows;
- a conversation goes through the chat template, which writes every special token itself (models/chat.py);
- an infilling opens and stays open like a prompt, but its special tokens are read as such, or nobody could
  write a mask.

A special token that is written out in a plain prompt or response may be ordinary text (`</s>` in HTML) or the
token (a prompt that was rendered beforehand). The text does not tell, and a wrong guess trains on garbage. So
such a text is refused until the user says which is meant: `SpecialTokens`.
"""

from typing import Any

from mdmscale.config.data import SpecialTokens
from mdmscale.models.special_tokens import find_special, special_texts
from mdmscale.models.text_reader import TextReader, encode_continued
from mdmscale.system.errors import UserError
from mdmscale.system.unicode import check_utf8


def prompt_ids(tokenizer: Any, prompt: str, special_tokens: SpecialTokens) -> list[int]:
    """A plain prompt's token ids: with BOS where the tokenizer opens texts so, without EOS.

    Raises:
        UserError: where a special token is written out in it and `special_tokens` is refuse.
    """
    check_special(tokenizer, prompt, special_tokens, "the prompt")
    return _opened(tokenizer, TextReader(tokenizer, special_tokens == "read").encode(prompt).ids)


def pair_ids(
    tokenizer: Any, prompt: str, response: str, special_tokens: SpecialTokens
) -> tuple[list[int], list[int]]:
    """The token ids of a prompt (see `prompt_ids`), and of the response that continues it.

    A response that ends with the EOS token's text ends with EOS, whatever `special_tokens` is.

    Raises:
        UserError: as `prompt_ids`.
    """
    check_special(tokenizer, prompt, special_tokens, "the prompt")
    eos, is_read = tokenizer.eos_token, special_tokens == "read"
    if is_read:
        response = without_space_after_special(tokenizer, response)
    ends = bool(eos) and response.endswith(eos)
    response = response.removesuffix(eos) if ends else response
    check_special(tokenizer, response, special_tokens, "the response")
    first, continued = encode_continued(tokenizer, TextReader(tokenizer, is_read), prompt, response)
    return _opened(tokenizer, first.ids), [*continued.ids, *([tokenizer.eos_token_id] if ends else [])]


def infilling_ids(tokenizer: Any, text: str) -> list[int]:
    """The token ids of a text with masks written in it: with BOS, without EOS."""
    return _opened(tokenizer, TextReader(tokenizer, is_read=True).encode(text).ids)


def opening_ids(tokenizer: Any) -> list[int]:
    """What the tokenizer puts before a text: BOS, or nothing.

    Documents of pretraining, prompts and samples without a prompt all begin so.
    """
    bare = tokenizer("a", add_special_tokens=False, verbose=False).input_ids
    whole = tokenizer("a", verbose=False).input_ids
    starts = range(len(whole) - len(bare) + 1)
    first = next((start for start in starts if whole[start : start + len(bare)] == bare), 0)
    return list(whole[:first])


def without_space_after_special(tokenizer: Any, text: str) -> str:
    """A text without the white space at its end, if a special token is before it.

    Many templates write a newline after the token that ends a turn, but nothing may follow the answer's end.
    """
    stripped = text.rstrip()
    return stripped if stripped.endswith(special_texts(tokenizer)) else text


def check_special(tokenizer: Any, text: str, special_tokens: SpecialTokens, name: str) -> None:
    """Refuse a text in which a special token is written out, unless the user has said what that means."""
    check_utf8(text, name)
    found = find_special(tokenizer, text) if special_tokens == "refuse" else None
    if found is not None:
        raise UserError(
            f"{name} has {found!r} written in it, a special token of this tokenizer; say what is meant with "
            "data.special_tokens in a run or --special-tokens of a command: read (the token, as in texts "
            "that were rendered beforehand) or text (ordinary text)"
        )


def _opened(tokenizer: Any, token_ids: list[int]) -> list[int]:
    """Token ids behind those that open a text, unless the text has written them itself."""
    opening = opening_ids(tokenizer)
    return token_ids if token_ids[: len(opening)] == opening else [*opening, *token_ids]
