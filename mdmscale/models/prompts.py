"""Prompts as token ids: the one rule, for SFT data and for sampling.

A model answers best to the tokens that it was trained on, so training and sampling must encode a prompt
alike. Three kinds of text reach a tokenizer:

- a plain prompt opens as the tokenizer opens texts (BOS) and stays open (no EOS), as the response follows;
  special tokens written in it are plain text;
- a conversation goes through the chat template, which writes every special token itself;
- an infilling opens and stays open like a prompt, but its special tokens are read as such, or nobody could
  write a mask.
"""

from collections.abc import Sequence
from typing import Any

from mdmscale.system.errors import UserError


def prompt_ids(tokenizer: Any, prompt: str) -> list[int]:
    """A plain prompt's token ids: with BOS, without EOS, special tokens in it as plain text."""
    return _opened(tokenizer, prompt, split_special_tokens=True)


def infilling_ids(tokenizer: Any, text: str) -> list[int]:
    """The token ids of a text with masks written in it: with BOS, without EOS."""
    return _opened(tokenizer, text, split_special_tokens=False)


def rendered_ids(tokenizer: Any, rendered: str) -> list[int]:
    """The token ids of what a chat template has rendered: its special tokens are read, and none is added."""
    return list(tokenizer(rendered, add_special_tokens=False, verbose=False).input_ids)


def render_prompt(tokenizer: Any, messages: Sequence[Any]) -> str:
    """A conversation in the tokenizer's chat template, up to where the assistant's answer begins.

    Raises:
        UserError: where the tokenizer has no chat template, or the template refuses the messages.
    """
    return _render(tokenizer, messages, add_generation_prompt=True)


def render_conversation(tokenizer: Any, messages: Sequence[Any]) -> str:
    """A whole conversation in the tokenizer's chat template, the assistant's last answer included.

    Raises:
        UserError: as `render_prompt`.
    """
    return _render(tokenizer, messages, add_generation_prompt=False)


def _opened(tokenizer: Any, text: str, *, split_special_tokens: bool) -> list[int]:
    token_ids = list(tokenizer(text, split_special_tokens=split_special_tokens, verbose=False).input_ids)
    # The tokenizer has added this EOS, unless the text itself ends with one.
    if token_ids and token_ids[-1] == tokenizer.eos_token_id and not text.endswith(tokenizer.eos_token):
        token_ids.pop()
    return token_ids


def _render(tokenizer: Any, messages: Sequence[Any], *, add_generation_prompt: bool) -> str:
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise UserError("messages need a chat template, and this tokenizer has none")
    try:
        return tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except TemplateError as error:
        raise UserError(f"the chat template refuses the messages: {error}") from None
