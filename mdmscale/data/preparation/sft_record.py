"""Encode one line of SFT data: a prompt, and a response that ends with EOS.

A line has one of four shapes: {"prompt", "response"}; {"messages": [{"role", "content"}, ...]}, which goes
through the tokenizer's chat template; {"text"}, all of which is the response; {"input_ids", "prompt_length"},
which is encoded already.
"""

import reprlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from mdmscale.data.preparation.chat import render_sample
from mdmscale.data.preparation.jsonl import Record, check_strings
from mdmscale.models.mask_spelling import MaskInText, without_mask
from mdmscale.models.prompts import prompt_ids, rendered_ids
from mdmscale.models.tokenizer import num_token_ids
from mdmscale.system.errors import UserError


@dataclass(frozen=True)
class EncodedSample:
    """A sample's token ids. The first `prompt_length` of them are the prompt."""

    token_ids: np.ndarray  # int64 [length]
    prompt_length: int


def encode_record(record: Record, tokenizer: Any, mask_in_text: MaskInText = "error") -> EncodedSample | None:
    """Encode one line. None where it holds the mask token and `mask_in_text` leaves it out.

    Raises:
        UserError: naming file and line.
    """
    check_strings(record.values, record.where)
    match _shape(record):
        case "input_ids":
            prompt, response = _given_ids(record, num_token_ids(tokenizer))
        case "messages":
            texts = render_sample(record, tokenizer)
            prompt, response = (rendered_ids(tokenizer, text) for text in texts)
        case "prompt":
            prompt, response = _encode_pair(record.values["prompt"], record.values["response"], tokenizer)
        case _:
            prompt, response = _encode_pair("", record.values["text"], tokenizer)
    if not response:
        raise UserError(f"{record.where}: the response is empty; leave the line out")
    clean = without_mask([prompt, response], tokenizer, mask_in_text, record.where)
    if clean is None:
        return None
    prompt, response = clean
    if response[-1] != tokenizer.eos_token_id:
        response = [*response, tokenizer.eos_token_id]
    return EncodedSample(np.asarray([*prompt, *response], dtype=np.int64), len(prompt))


def _shape(record: Record) -> str:
    """The key that tells the line's shape. Checks the types of that shape's values."""
    shapes: dict[str, dict[str, type]] = {
        "input_ids": {"input_ids": list, "prompt_length": int},
        "messages": {"messages": list},
        "prompt": {"prompt": str, "response": str},
        "text": {"text": str},
    }
    for name, keys in shapes.items():
        if name in record.values:
            for key, expected in keys.items():
                value = record.values.get(key)
                if not isinstance(value, expected):
                    raise UserError(f"{record.where}: {key!r} is missing or not a {expected.__name__}")
            return name
    raise UserError(
        f"{record.where}: has the keys {sorted(record.values)}; expected prompt and response, "
        "messages, text, or input_ids and prompt_length"
    )


def _encode_pair(prompt: str, response: str, tokenizer: Any) -> tuple[list[int], list[int]]:
    """A prompt as `prompt_ids` encodes it, and a response; special tokens in the response are plain text."""
    if not response.strip():
        return prompt_ids(tokenizer, prompt), []
    response = response.removesuffix(tokenizer.eos_token)  # the caller adds the EOS token
    options = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
    return prompt_ids(tokenizer, prompt), tokenizer(response, **options).input_ids


def _given_ids(record: Record, vocab_size: int) -> tuple[list[int], list[int]]:
    ids, prompt_length = record.values["input_ids"], record.values["prompt_length"]
    wrong = next((item for item in ids if type(item) is not int or not 0 <= item < vocab_size), None)
    if wrong is not None:
        raise UserError(
            f"{record.where}: {reprlib.repr(wrong)} in input_ids is not a token of this vocabulary of "
            f"{vocab_size}"
        )
    if not 0 <= prompt_length <= len(ids):
        raise UserError(
            f"{record.where}: prompt_length = {reprlib.repr(prompt_length)}, but there are {len(ids)} "
            "input_ids"
        )
    return ids[:prompt_length], ids[prompt_length:]
