"""Requests on their way in, as token ids with masks, and sampled tokens on their way out, as text."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mdmscale.generation.loading import FolderFacts, LoadedModel
from mdmscale.system.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Request:
    """A text with masks where tokens are wanted.

    Attributes:
        token_ids: the tokens that are given, and the mask token's id in the other places.
        prompt_length: tokens before the response; None for an infilling, whose masks may be anywhere.
        label: how to name it to its user.
        sample: number among samples of the same request, which makes their draws differ.
    """

    token_ids: list[int]
    prompt_length: int | None
    label: str = ""
    sample: int = 0

    def samples(self, num: int) -> list["Request"]:
        """`num` requests for as many samples of this one."""
        return [replace(self, sample=number) for number in range(num)]


def encode_prompt(loaded: LoadedModel, text: str | None, length: int) -> Request:
    """A response of `length` tokens after a prompt, or with None of a text of its own.

    Raises:
        UserError: if the prompt holds the mask token or does not fit the model.
    """
    if text is None:
        return encode_ids(loaded, [], length)
    label = shorten(text)
    return _response(loaded, _text_ids(loaded.tokenizer, text), length, label)


def encode_messages(loaded: LoadedModel, messages: Sequence[dict[str, str]], length: int) -> Request:
    """A response of `length` tokens to a conversation, in the tokenizer's chat template.

    Args:
        messages: [{"role": "user", "content": "..."}, ...].

    Raises:
        UserError: if there is no template, or it refuses the conversation.
    """
    from jinja2 import TemplateError

    tokenizer = loaded.tokenizer
    label = shorten(str(messages[-1].get("content", ""))) if messages else ""
    if tokenizer.chat_template is None:
        raise UserError("the model's tokenizer has no chat template; give prompts without chat or messages")
    try:
        rendered = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        raise UserError(f"the chat template refuses {label!r}: {error}") from None
    # The template writes its special tokens itself.
    token_ids = list(tokenizer(rendered, add_special_tokens=False, verbose=False)["input_ids"])
    return _response(loaded, token_ids, length, label)


def encode_infilling(loaded: LoadedModel, text: str) -> Request:
    """A text whose mask tokens, written out, are to be replaced: one mask, one token.

    Raises:
        UserError: if there are none, or the text does not fit the model.
    """
    token_ids = _text_ids(loaded.tokenizer, text)
    if loaded.facts.mask_token_id not in token_ids:
        raise UserError(f"text {shorten(text)!r}: has no {loaded.mask_token} where tokens are wanted")
    return _checked(loaded.facts, Request(token_ids, None, shorten(text)))


def encode_ids(loaded: LoadedModel, token_ids: Sequence[int], length: int) -> Request:
    """Token ids: with masks among them an infilling, else a prompt for a response of `length` tokens.

    Raises:
        UserError: if they do not fit the model.
    """
    token_ids = list(token_ids)
    label = f"{len(token_ids)} token ids" if token_ids else ""
    if loaded.facts.mask_token_id in token_ids:
        return _checked(loaded.facts, Request(token_ids, None, label))
    return _response(loaded, token_ids, length, label)


def _response(loaded: LoadedModel, prompt: list[int], length: int, label: str) -> Request:
    mask = loaded.facts.mask_token_id
    if mask in prompt:
        raise UserError(f"prompt {label!r} contains the mask token; only the response is denoised")
    return _checked(loaded.facts, Request([*prompt, *[mask] * length], len(prompt), label))


def _checked(facts: FolderFacts, request: Request) -> Request:
    """The request, if the model can take it."""
    size, name = len(request.token_ids), f" ({request.label!r})" if request.label else ""
    if size > facts.max_length:
        parts = ""
        if request.prompt_length is not None:
            parts = f": a prompt of {request.prompt_length} and length = {size - request.prompt_length}"
        raise UserError(
            f"{size} tokens{name}{parts}: exceeds the model's max_position_embeddings = {facts.max_length}"
        )
    if wrong := [token for token in request.token_ids if not 0 <= token < facts.vocab_size]:
        raise UserError(
            f"token id {wrong[0]}{name} is not below the model's vocabulary of {facts.vocab_size}; "
            f"the tokenizer of {facts.folder} is another model's, or the ids are"
        )
    return request


def _text_ids(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """The text as the tokenizer opens texts (BOS), but not closed: the response follows."""
    token_ids = list(tokenizer(text, verbose=False)["input_ids"])
    if token_ids and token_ids[-1] == tokenizer.eos_token_id and not text.endswith(tokenizer.eos_token):
        token_ids.pop()
    return token_ids


def decode_response(
    loaded: LoadedModel, request: Request, token_ids: Sequence[int], *, raw: bool = False
) -> str:
    """The response's text, cut at its first EOS unless `raw`; of an infilling the whole text.

    Args:
        token_ids: the request's, sampled.
        raw: with all special tokens.
    """
    prompt = list(token_ids[: request.prompt_length or 0])
    response = list(token_ids[len(prompt) :])
    if request.prompt_length is not None and not raw:
        ends = [place for place, token in enumerate(response) if token in loaded.eos_ids]
        response = response[: ends[0]] if ends else response

    def decode(token_ids: list[int]) -> str:
        text = loaded.tokenizer.decode(
            token_ids, skip_special_tokens=not raw, clean_up_tokenization_spaces=False
        )
        assert isinstance(text, str)
        return text

    # Decoded after its prompt, as many tokenizers drop the space before the first token of a text.
    before, whole = decode(prompt), decode(prompt + response)
    return whole[len(before) :] if whole.startswith(before) else decode(response)


def shorten(text: str, limit: int = 50) -> str:
    """`text` on one line of at most `limit` characters."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 3] + "..."
