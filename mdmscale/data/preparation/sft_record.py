"""Encode one line of SFT data: token ids, and which of them are trained. The last one is EOS.

The shapes of a line:

- {"prompt", "response"}, both texts (or "completion", as TRL calls it);
- {"messages": [{"role", "content"}, ...]}, which goes through the tokenizer's chat template; {"tools"} too;
- {"prompt": [...], "completion": [...]}, both lists of messages;
- {"text"}, all of which is the response;
- {"input_ids", "prompt_length"} or {"input_ids", "labels"}, which are encoded already.
"""

import reprlib
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np

from mdmscale.config.data import SpecialTokens, TrainOn
from mdmscale.data.preparation.chat import encode_conversation
from mdmscale.data.preparation.jsonl import Record
from mdmscale.models.mask_spelling import MaskInText, without_mask
from mdmscale.models.messages import check_messages
from mdmscale.models.prompts import pair_ids
from mdmscale.models.tokenizer import num_token_ids
from mdmscale.system.errors import UserError
from mdmscale.system.unicode import check_strings

UNTRAINED = -100  # the label that trainers give to tokens without a loss

_RESPONSES = ("response", "completion")


@dataclass(frozen=True)
class EncodedSample:
    """A sample's token ids, and which of them are trained. The last one is."""

    token_ids: np.ndarray  # int64 [length]
    trained: np.ndarray  # bool [length]

    @property
    def prompt_length(self) -> int:
        """The number of tokens before the first that is trained."""
        return int(self.trained.argmax())


def encode_record(
    record: Record,
    tokenizer: Any,
    train_on: TrainOn = "last",
    special_tokens: SpecialTokens = "refuse",
    mask_in_text: MaskInText = "error",
) -> EncodedSample | None:
    """Encode one line. None where it holds the mask token and `mask_in_text` leaves it out.

    Raises:
        UserError: naming file and line.
    """
    check_strings(record.values, record.where)
    try:
        token_ids, trained = _encode(record.values, tokenizer, train_on, special_tokens)
    except UserError as error:
        raise UserError(*(f"{record.where}: {problem}" for problem in error.problems)) from None
    if True not in trained:
        raise UserError(f"{record.where}: the response is empty; leave the line out")
    runs = [
        (mark, [token for token, _ in run])
        for mark, run in groupby(zip(token_ids, trained, strict=True), key=itemgetter(1))
    ]
    clean = without_mask([ids for _, ids in runs], tokenizer, mask_in_text, record.where)
    if clean is None:
        return None
    token_ids = [token for ids in clean for token in ids]
    trained = [mark for (mark, _), ids in zip(runs, clean, strict=True) for _ in ids]
    if token_ids[-1] != tokenizer.eos_token_id:
        token_ids, trained = [*token_ids, tokenizer.eos_token_id], [*trained, True]
    return EncodedSample(np.asarray(token_ids, dtype=np.int64), np.asarray(trained, dtype=bool))


def check_eos(tokenizer: Any) -> None:
    """Refuse a tokenizer that cannot end responses."""
    if tokenizer.eos_token_id is None:
        raise UserError("the tokenizer has no EOS token, but responses must end with one; set its eos_token")


def _encode(
    values: dict[str, Any], tokenizer: Any, train_on: TrainOn, special_tokens: SpecialTokens
) -> tuple[list[int], list[bool]]:
    """The token ids of a line, and which of them are trained; without those after the last one trained."""
    check_eos(tokenizer)
    if "input_ids" in values:
        return _given_ids(values, num_token_ids(tokenizer))
    if "messages" in values:
        return encode_conversation(tokenizer, values["messages"], values.get("tools"), train_on)
    if "prompt" in values:
        response = values[_response_key(values)]
        if isinstance(values["prompt"], list):
            messages, num_prompt = _joined(values["prompt"], response)
            return encode_conversation(tokenizer, messages, values.get("tools"), train_on, num_prompt)
        return _encode_pair(values["prompt"], response, tokenizer, special_tokens)
    if "text" in values:
        _check_type(values, "text", str)
        return _encode_pair("", values["text"], tokenizer, special_tokens)
    raise UserError(
        f"has the keys {sorted(values)}; expected prompt and response (or completion), messages, text, or "
        "input_ids with prompt_length or labels"
    )


def _response_key(values: dict[str, Any]) -> str:
    """The key of the response that goes with `prompt`. Checks that both are texts, or lists of messages."""
    given = [key for key in _RESPONSES if key in values]
    if len(given) > 1:
        raise UserError("has both 'response' and 'completion'; give one of them")
    key = given[0] if given else "response"
    _check_type(values, "prompt", (str, list))
    _check_type(values, key, type(values["prompt"]))
    return key


def _check_type(values: dict[str, Any], key: str, expected: type | tuple[type, ...]) -> None:
    if not isinstance(values.get(key), expected):
        names = " or ".join(
            each.__name__ for each in (expected if isinstance(expected, tuple) else (expected,))
        )
        raise UserError(f"{key!r} is missing or not a {names}")


def _joined(prompt: list[Any], completion: list[Any]) -> tuple[list[Any], int]:
    """The messages of a prompt and its completion, and how many are the prompt's."""
    check_messages(prompt, "prompt")
    if not check_messages(completion, "completion"):
        raise UserError("the response is empty; leave the line out")
    return [*prompt, *completion], len(prompt)


def _encode_pair(
    prompt: str, response: str, tokenizer: Any, special_tokens: SpecialTokens
) -> tuple[list[int], list[bool]]:
    if not response.strip():
        raise UserError("the response is empty; leave the line out")
    ids, response_ids = pair_ids(tokenizer, prompt, response, special_tokens)
    return [*ids, *response_ids], [False] * len(ids) + [True] * len(response_ids)


def _given_ids(values: dict[str, Any], vocab_size: int) -> tuple[list[int], list[bool]]:
    _check_type(values, "input_ids", list)
    ids = values["input_ids"]
    wrong = next((item for item in ids if type(item) is not int or not 0 <= item < vocab_size), None)
    if wrong is not None:
        raise UserError(
            f"{reprlib.repr(wrong)} in input_ids is not a token of this vocabulary of {vocab_size}"
        )
    if "prompt_length" in values or "labels" not in values:
        _check_type(values, "prompt_length", int)
        prompt_length = values["prompt_length"]
        if not 0 <= prompt_length <= len(ids):
            raise UserError(
                f"prompt_length = {reprlib.repr(prompt_length)}, but there are {len(ids)} input_ids"
            )
        return ids, [place >= prompt_length for place in range(len(ids))]
    trained = _labelled(ids, values["labels"])
    # Nothing may follow the last answer: the model would see it, but not when it is sampled from.
    length = next((place + 1 for place in range(len(ids) - 1, -1, -1) if trained[place]), 0)
    if 0 in (values.get("attention_mask") or [])[:length]:
        raise UserError("attention_mask has 0 before the last token with a label; remove the padding there")
    return ids[:length], trained[:length]


def _labelled(ids: list[int], labels: Any) -> list[bool]:
    """Which tokens have a label; trainers give the others -100."""
    if not isinstance(labels, list) or len(labels) != len(ids):
        found = len(labels) if isinstance(labels, list) else type(labels).__name__
        raise UserError(f"labels: expected a list of {len(ids)}, one for each of input_ids, found {found}")
    for place, (token, label) in enumerate(zip(ids, labels, strict=True)):
        if label not in (token, UNTRAINED):
            raise UserError(
                f"labels[{place}] = {reprlib.repr(label)}, but input_ids[{place}] = {token}; a label is "
                f"the same token, not the next one, or {UNTRAINED} where it is not trained"
            )
    return [label != UNTRAINED for label in labels]
