"""Prompts on their way in, as token ids, and responses on their way out, as text."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mdmscale.errors import UserError
from mdmscale.generation.loading import LoadedModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Prompt:
    """A prompt as the user gave it (None: no prompt) and as the model reads it."""

    text: str | None
    token_ids: list[int]


def prompt_texts(options: argparse.Namespace) -> list[str | None]:
    """The prompts asked for; [None] where there are none, for samples of the model by itself."""
    if options.prompt_file is not None:
        return list(_read_prompts(options.prompt_file))
    if options.prompt is None:
        if options.chat:
            raise UserError("--chat: needs a --prompt or a --prompt-file")
        return [None]
    if not all(options.prompt):
        raise UserError("--prompt '': is empty; leave --prompt out to sample without one")
    return list(options.prompt)


def _read_prompts(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--prompt-file {path}: cannot be read: {error}") from None
    prompts = [line for line in lines if line.strip()]
    if not prompts:
        raise UserError(f"--prompt-file {path}: is empty; write one prompt a line")
    return prompts


def encode_prompt(loaded: LoadedModel, text: str | None, *, chat: bool) -> Prompt:
    """The token ids that stand before the response; none where `text` is None.

    Raises:
        UserError: if the prompt holds the mask token or an id the model lacks, or has no template to fill.
    """
    if text is None:
        return Prompt(None, [])
    facts = loaded.facts
    token_ids = (_chat_ids if chat else _text_ids)(loaded.tokenizer, text)
    if facts.mask_token_id in token_ids:
        raise UserError(f"prompt {shorten(text)!r} contains the mask token; only the response is denoised")
    if max(token_ids, default=0) >= facts.vocab_size:
        raise UserError(
            f"{facts.folder}: the tokenizer gives token id {max(token_ids)}, but the model's vocabulary has "
            f"{facts.vocab_size}; the tokenizer is another model's"
        )
    return Prompt(text, token_ids)


def _text_ids(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """The text as the tokenizer opens texts (BOS), but not closed: the response follows."""
    token_ids = list(tokenizer(text, verbose=False)["input_ids"])
    if token_ids and token_ids[-1] == tokenizer.eos_token_id and not text.endswith(tokenizer.eos_token):
        token_ids.pop()
    return token_ids


def _chat_ids(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """The text as one user message in the chat template, which writes its special tokens itself."""
    from jinja2 import TemplateError

    if tokenizer.chat_template is None:
        raise UserError("--chat: the model's tokenizer has no chat template; leave --chat out")
    messages = [{"role": "user", "content": text}]
    try:
        rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        raise UserError(f"--chat: the chat template refuses {shorten(text)!r}: {error}") from None
    return list(tokenizer(rendered, add_special_tokens=False, verbose=False)["input_ids"])


def decode_response(loaded: LoadedModel, prompt_ids: list[int], response_ids: list[int], *, raw: bool) -> str:
    """The text of a response, cut at its first EOS unless `raw`."""
    tokenizer = loaded.tokenizer
    if not raw and tokenizer.eos_token_id in response_ids:
        response_ids = response_ids[: response_ids.index(tokenizer.eos_token_id)]

    def decode(token_ids: list[int]) -> str:
        text = tokenizer.decode(token_ids, skip_special_tokens=not raw, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    # Decoded after its prompt, as many tokenizers drop the space before the first token of a text.
    before, whole = decode(prompt_ids), decode(prompt_ids + response_ids)
    return whole[len(before) :] if whole.startswith(before) else decode(response_ids)


def shorten(text: str, limit: int = 50) -> str:
    """`text` on one line of at most `limit` characters."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 3] + "..."
