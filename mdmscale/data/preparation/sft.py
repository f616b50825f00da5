"""SFT JSONL to prepared shards: where the prompt ends, and a response that ends with EOS.

A line has one of four shapes: {"prompt", "response"}; {"messages": [{"role", "content"}, ...]}, rendered by
the tokenizer's chat template; {"text"}, all of it response; {"input_ids", "prompt_length"}, encoded already.
"""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from mdmscale.data.indexed import IndexedWriter, bin_path, idx_path, token_dtype
from mdmscale.data.preparation.jsonl import Record, check_unicode, read_jsonl
from mdmscale.data.sft_shard import fit_lengths, samples_path, write_samples
from mdmscale.data.shards import prompts_path
from mdmscale.system.errors import UserError
from mdmscale.system.folders import published_files

_FILES = (bin_path, prompts_path, samples_path, idx_path)  # the index last: it makes a shard visible


@dataclass(frozen=True)
class EncodeSummary:
    """What `encode_sft` wrote, and what it left out."""

    num_samples: int
    num_truncated: int
    num_dropped: int
    num_tokens: int
    num_response_tokens: int


@dataclass(frozen=True)
class EncodedSample:
    """A sample's ids, and how many of them are the prompt."""

    token_ids: np.ndarray  # int64 [length]
    prompt_length: int


def encode_sft(
    paths: list[Path], tokenizer: Any, prefix: Path, *, sequence_length: int, too_long: str
) -> EncodeSummary:
    """Encode JSONL files to the shard `prefix` (see sft_shard.py), in order; all of its files or none.

    `too_long` decides on samples longer than `sequence_length`: `error` refuses, `drop` leaves them out,
    `truncate` cuts the response (no EOS follows the cut) and leaves out those whose prompt leaves it no room.

    Raises:
        UserError: naming file and line, for unreadable lines, unknown shapes and empty responses.
    """
    if tokenizer.eos_token_id is None:
        raise UserError("the tokenizer has no EOS token, but responses must end with one; set its eos_token")
    with published_files([path_of(prefix) for path_of in _FILES]) as folder:
        return _write_shard(paths, tokenizer, folder / prefix.name, sequence_length, too_long)


def encode_record(record: Record, tokenizer: Any) -> EncodedSample:
    """Encode one line; the response ends with EOS.

    Raises:
        UserError: naming file and line.
    """
    match _shape(record):
        case "input_ids":
            prompt, response = _given_ids(record, len(tokenizer))
        case "messages":
            texts = _render_messages(record, tokenizer)
            prompt, response = (
                tokenizer(text, add_special_tokens=False, verbose=False).input_ids for text in texts
            )
        case "prompt":
            prompt, response = _encode_pair(record.values["prompt"], record.values["response"], tokenizer)
        case _:
            prompt, response = _encode_pair("", record.values["text"], tokenizer)
    if not response:
        raise UserError(f"{record.where}: the response is empty; leave the line out")
    if tokenizer.mask_token_id is not None and tokenizer.mask_token_id in (*prompt, *response):
        raise UserError(f"{record.where}: holds the mask token, which stands for what is to be predicted")
    if response[-1] != tokenizer.eos_token_id:
        response = [*response, tokenizer.eos_token_id]
    return EncodedSample(np.asarray([*prompt, *response], dtype=np.int64), len(prompt))


def _write_shard(
    paths: list[Path], tokenizer: Any, prefix: Path, sequence_length: int, too_long: str
) -> EncodeSummary:
    prompt_lengths = array("i")
    num_truncated = num_dropped = longest = 0
    with IndexedWriter(prefix, token_dtype(len(tokenizer))) as writer:
        for sample, where in _encode_files(paths, tokenizer):
            length = _fitted(sample, where, sequence_length, too_long)
            num_truncated += 0 < length < len(sample.token_ids)
            num_dropped += length == 0
            if length:
                writer.add_document(sample.token_ids[:length])
                prompt_lengths.append(sample.prompt_length)
                longest = max(longest, length)
        if not prompt_lengths:
            names = ", ".join(map(str, paths))
            raise UserError(f"{names}: no sample is left ({num_dropped} dropped, too_long = {too_long})")
    write_samples(prefix, np.asarray(prompt_lengths), longest)
    num_response_tokens = writer.num_tokens - sum(prompt_lengths)
    return EncodeSummary(
        len(prompt_lengths), num_truncated, num_dropped, writer.num_tokens, num_response_tokens
    )


def _encode_files(paths: list[Path], tokenizer: Any) -> Iterator[tuple[EncodedSample, str]]:
    columns = SpinnerColumn(), TextColumn("{task.completed:,.0f} samples encoded"), TimeElapsedColumn()
    with Progress(*columns, transient=True) as progress:
        task = progress.add_task("", total=None)
        for path in paths:
            for record in read_jsonl(path):
                yield encode_record(record, tokenizer), record.where
                progress.advance(task)


def _fitted(sample: EncodedSample, where: str, sequence_length: int, too_long: str) -> int:
    length = len(sample.token_ids)
    if too_long == "error" and length > sequence_length:
        raise UserError(
            f"{where}: {length} tokens, more than the sequence length of {sequence_length}; "
            "raise it, or choose to truncate or drop long samples"
        )
    return int(fit_lengths(np.asarray(sample.prompt_length), np.asarray(length), sequence_length, too_long))


def _shape(record: Record) -> str:
    """The key that tells the line's shape, its values' types checked."""
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
                if isinstance(value, str):
                    check_unicode(value, f"{record.where}: {key!r}")
            return name
    raise UserError(
        f"{record.where}: has the keys {sorted(record.values)}; expected prompt and response, "
        "messages, text, or input_ids and prompt_length"
    )


def _encode_pair(prompt: str, response: str, tokenizer: Any) -> tuple[list[int], list[int]]:
    """The prompt opens as the tokenizer opens texts (BOS) and stays open; the response is its text alone.

    Special tokens written out in them are plain text.
    """
    prompt_ids = tokenizer(prompt, split_special_tokens=True, verbose=False).input_ids
    if prompt_ids and prompt_ids[-1] == tokenizer.eos_token_id and not prompt.endswith(tokenizer.eos_token):
        prompt_ids = prompt_ids[:-1]
    if not response.strip():
        return prompt_ids, []
    response = response.removesuffix(tokenizer.eos_token)  # written out by the data, and added by the caller
    options = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
    return prompt_ids, tokenizer(response, **options).input_ids


def _given_ids(record: Record, vocab_size: int) -> tuple[list[int], list[int]]:
    ids, prompt_length = record.values["input_ids"], record.values["prompt_length"]
    wrong = next((item for item in ids if type(item) is not int or not 0 <= item < vocab_size), None)
    if wrong is not None:
        raise UserError(
            f"{record.where}: {wrong!r} in input_ids is no token of this vocabulary of {vocab_size}"
        )
    if not 0 <= prompt_length <= len(ids):
        raise UserError(
            f"{record.where}: prompt_length = {prompt_length}, but there are {len(ids)} input_ids"
        )
    return ids[:prompt_length], ids[prompt_length:]


def _render_messages(record: Record, tokenizer: Any) -> tuple[str, str]:
    """(prompt, response) texts: the rendering before and from the last message, the assistant's."""
    messages = record.values["messages"]
    if not tokenizer.chat_template:
        raise UserError(f"{record.where}: 'messages' needs a chat template, and this tokenizer has none")
    if not all(isinstance(message, dict) and isinstance(message.get("role"), str) for message in messages):
        raise UserError(f"{record.where}: each of 'messages' must be an object with 'role' and 'content'")
    if not messages or messages[-1]["role"] != "assistant":
        raise UserError(f"{record.where}: the last of 'messages' must be the assistant's")
    if not str(messages[-1].get("content") or "").strip():
        raise UserError(f"{record.where}: the response is empty; leave the line out")
    prompt, whole = _apply_template(messages, tokenizer, record.where)
    if not whole.startswith(prompt):
        raise UserError(
            f"{record.where}: the chat template renders the whole conversation differently from its prompt, "
            "so the response cannot be told apart; give prompt and response instead"
        )
    response = whole[len(prompt) :]
    # templates often put a newline behind their end-of-turn token; EOS must come last
    closed = response.rstrip().endswith(tokenizer.eos_token)
    return prompt, response.rstrip() if closed else response


def _apply_template(messages: list[Any], tokenizer: Any, where: str) -> tuple[str, str]:
    from jinja2 import TemplateError

    try:
        prompt = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
        return prompt, tokenizer.apply_chat_template(messages, tokenize=False)
    except TemplateError as error:
        raise UserError(f"{where}: the chat template refuses the messages: {error}") from None
