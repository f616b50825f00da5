"""Requests: token ids with masks on the way in, text on the way out."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from mdmscale.config.data import SpecialTokens
from mdmscale.models.chat import chat_prompt_ids
from mdmscale.models.opening import LoadedModel, ModelDescription
from mdmscale.models.prompts import infilling_ids, opening_ids, prompt_ids
from mdmscale.models.special_tokens import is_ordinary
from mdmscale.system.errors import UserError
from mdmscale.system.unicode import check_utf8


@dataclass(frozen=True)
class Request:
    """A text to sample: its given tokens, and masks where tokens are wanted.

    Attributes:
        token_ids: the given tokens, and in all other places the model's `wanted_id`: its mask token.
        prompt_length: the number of tokens before the response; None for an infilling, which may have masks
            anywhere.
        label: the request's name in messages and titles.
        sample: the request's number among requests for samples of the same text. Each number has its own
            random draws.
    """

    token_ids: list[int]
    prompt_length: int | None
    label: str = ""
    sample: int = 0

    def samples(self, num: int) -> list["Request"]:
        """`num` requests, each for another sample of this one's text."""
        return [replace(self, sample=number) for number in range(num)]


def encode_prompt(
    loaded: LoadedModel, text: str | None, length: int, special_tokens: SpecialTokens = "refuse"
) -> Request:
    """Ask for a response of `length` tokens to a prompt, or without a prompt where `text` is None.

    The prompt's tokens are those that SFT training gives the same prompt. Without one, the response begins as
    documents of pretraining do.

    Args:
        special_tokens: what special tokens that are written out in the prompt mean, as data.special_tokens.

    Raises:
        UserError: where the prompt contains the mask token, or does not fit the model; and where it has
            special tokens that `special_tokens` refuses.
    """
    tokenizer = loaded.tokenizer
    if text is None:
        return _response(loaded, opening_ids(tokenizer), length, "")
    label = shorten(text)
    check_utf8(text, f"prompt {label!r}")
    # As plain text a mask would do no harm, but whoever writes one wants it filled in.
    is_written = loaded.description.wanted_id in infilling_ids(tokenizer, text)
    if is_written and special_tokens != "text" and not is_ordinary(tokenizer, loaded.mask_token):
        raise UserError(
            f"prompt {label!r} contains the mask token, and only the response is denoised; "
            "give it as a text to fill in (--text)"
        )
    try:
        token_ids = prompt_ids(tokenizer, text, special_tokens)
    except UserError as error:
        raise UserError(f"prompt {label!r}: {error}") from None
    return _response(loaded, token_ids, length, label)


def encode_messages(loaded: LoadedModel, messages: Any, length: int, tools: Any = None) -> Request:
    """Ask for a response of `length` tokens to a conversation, in the tokenizer's chat template.

    Args:
        messages: [{"role": "user", "content": "..."}, ...].
        tools: what the model may call, in OpenAI's format; None: nothing.

    Raises:
        UserError: where there is no template, or it refuses the conversation.
    """
    last = messages[-1] if isinstance(messages, list) and messages else None
    label = shorten(str(last.get("content", ""))) if isinstance(last, dict) else ""
    try:
        token_ids = chat_prompt_ids(loaded.tokenizer, messages, tools)
    except UserError as error:
        raise UserError(f"messages {label!r}: {error}") from None
    return _response(loaded, token_ids, length, label)


def encode_infilling(loaded: LoadedModel, text: str) -> Request:
    """Ask to fill in a text: each mask token written in it becomes one token.

    Raises:
        UserError: where the text has no mask token or does not fit the model.
    """
    check_utf8(text, f"text {shorten(text)!r}")
    token_ids = infilling_ids(loaded.tokenizer, text)
    if loaded.description.objective == "full" and loaded.description.wanted_id not in token_ids:
        raise UserError(f"text {shorten(text)!r}: has no {loaded.mask_token} where tokens are wanted")
    return _checked(loaded.description, Request(token_ids, None, shorten(text)))


def encode_ids(loaded: LoadedModel, token_ids: Sequence[int], length: int) -> Request:
    """Ask to fill in token ids that contain masks, or else for a response of `length` tokens to them.

    Raises:
        UserError: where they do not fit the model.
    """
    token_ids = list(token_ids)
    label = f"{len(token_ids)} token ids" if token_ids else ""
    if loaded.description.wanted_id in token_ids:
        return _checked(loaded.description, Request(token_ids, None, label))
    return _response(loaded, token_ids, length, label)


def _response(loaded: LoadedModel, prompt: list[int], length: int, label: str) -> Request:
    mask = loaded.description.wanted_id
    if mask in prompt:
        raise UserError(f"prompt {label!r} contains the mask token, and only the response is denoised")
    return _checked(loaded.description, Request([*prompt, *[mask] * length], len(prompt), label))


def _checked(description: ModelDescription, request: Request) -> Request:
    """The request, if it fits the model."""
    name = f" ({request.label!r})" if request.label else ""
    if len(request.token_ids) > description.max_length:
        raise UserError(_too_long(description.max_length, request, name))
    if description.objective == "ar":
        _check_continues(description, request, name)
    given = [token for token in request.token_ids if token != description.wanted_id]
    if wrong := [token for token in given if not 0 <= token < description.vocab_size]:
        raise UserError(
            f"token id {wrong[0]}{name} is not below the model's vocabulary of {description.vocab_size}; "
            f"the ids, or the tokenizer in {description.folder}, belong to another model"
        )
    return request


def _check_continues(description: ModelDescription, request: Request, name: str) -> None:
    """Refuse what has no beginning that an autoregressive model could continue."""
    if request.prompt_length is None:
        raise UserError(
            f"text{name}: {description.folder} is an autoregressive model, which continues prompts but "
            "does not fill in masks; give it as a prompt"
        )
    if request.prompt_length == 0:
        raise UserError(
            f"{description.folder} is an autoregressive model, which needs a token to begin with, and its "
            "tokenizer puts none before a text; give a prompt"
        )


def _too_long(longest: int, request: Request, name: str) -> str:
    """What is too long: the whole, the prompt alone, or the prompt with its response."""
    size, prompt, most = len(request.token_ids), request.prompt_length, f"max_position_embeddings = {longest}"
    if prompt is None or prompt == 0:
        return f"{size} tokens{name}: exceeds the model's {most}; shorten the text"
    if prompt >= longest:
        return f"the prompt{name} alone has {prompt} tokens, and the model's {most}; shorten it"
    return (
        f"{size} tokens{name}: a prompt of {prompt} and length = {size - prompt}: exceeds the model's "
        f"{most}; set length to {longest - prompt} or less"
    )


def decode_response(
    loaded: LoadedModel, request: Request, token_ids: Sequence[int], *, raw: bool = False
) -> str:
    """The text of the response up to its first EOS; of an infilling the whole text.

    Args:
        token_ids: the request's tokens after sampling.
        raw: keep all special tokens, and what follows an EOS.
    """
    prompt = list(token_ids[: request.prompt_length or 0])
    response = list(token_ids[len(prompt) :])
    if request.prompt_length is not None and not raw:
        ends = [position for position, token in enumerate(response) if token in loaded.eos_ids]
        response = response[: ends[0]] if ends else response

    def decode(token_ids: list[int]) -> str:
        text = loaded.tokenizer.decode(
            token_ids, skip_special_tokens=not raw, clean_up_tokenization_spaces=False
        )
        assert isinstance(text, str)
        return text

    # Decode prompt and response together, as many tokenizers drop a space at the start of a text.
    before, whole = decode(prompt), decode(prompt + response)
    return whole[len(before) :] if whole.startswith(before) else decode(response)


def shorten(text: str, limit: int = 50) -> str:
    """`text` on one line of at most `limit` characters."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 3] + "..."
