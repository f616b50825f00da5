"""Read what the user wants sampled: prompts, texts with masks, lines of JSONL. Needs no torch."""

import argparse
from pathlib import Path
from typing import Any

from mdmscale.config.data import SpecialTokens
from mdmscale.data.preparation.jsonl import read_jsonl
from mdmscale.generation.prompts import (
    Request,
    encode_ids,
    encode_infilling,
    encode_messages,
    encode_prompt,
    shorten,
)
from mdmscale.models.opening import LoadedModel
from mdmscale.system.errors import UserError

Source = dict[str, Any]
"""One of the keys prompt, messages, text and input_ids, and the line's other keys; {} means no prompt."""

KINDS = {"prompt": str, "messages": list, "text": str, "input_ids": list}
GENERATED = "generated"  # the key of the sampled text in an output line


def read_sources(arguments: argparse.Namespace) -> list[Source]:
    """The sources that the command line names, in order.

    Raises:
        UserError: for files that cannot be read and lines that are wrong.
    """
    for option in ("prompt", "text"):
        if not all(getattr(arguments, option) or ["given"]):
            raise UserError(f"--{option} '': is empty; leave --{option} out to sample without a prompt")
    if arguments.input is not None:
        sources = _read_jsonl(arguments.input)
    elif arguments.prompt_file is not None:
        sources = [{"prompt": line} for line in _read_lines("--prompt-file", arguments.prompt_file)]
    elif arguments.text:
        sources = [{"text": text} for text in arguments.text]
    else:
        sources = [{"prompt": prompt} for prompt in arguments.prompt or []] or [{}]
    if arguments.chat and not all("prompt" in source or "messages" in source for source in sources):
        raise UserError("--chat: needs prompts; give --prompt, --prompt-file, or an --input with prompts")
    return sources


def _read_lines(option: str, path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{option} {path}: not UTF-8 at byte {error.start + 1}; convert it") from None
    except OSError as error:
        raise UserError(f"{option} {path}: cannot be read: {error.strerror}") from None
    if not any(line.strip() for line in lines):
        raise UserError(f"{option} {path}: is empty; write one prompt on each line")
    return [line for line in lines if line.strip()]


def _read_jsonl(path: Path) -> list[Source]:
    sources, problems = [], []
    try:
        for record in read_jsonl(path):
            try:
                sources.append(_check(record.values))
            except ValueError as error:
                problems.append(f"--input {record.where}: {error}")
    except UserError as error:
        problems += [f"--input {problem}" for problem in error.problems]
    if problems:
        raise UserError(*problems[:10])
    if not sources:
        raise UserError(f"--input {path}: is empty; write one JSON object on each line")
    return sources


def _check(values: dict[str, Any]) -> Source:
    """The values of a line, checked; raises ValueError with what is wrong."""
    given = [kind for kind in KINDS if kind in values]
    if len(given) != 1:
        raise ValueError(f"has {' and '.join(given) or 'none'} of {', '.join(KINDS)}; give exactly one")
    (kind,) = given
    value = values[kind]
    if not isinstance(value, KINDS[kind]) or not value:
        name = "text" if KINDS[kind] is str else "list"
        raise ValueError(f"{kind} = {shorten(repr(value))} is no {name}, or an empty one")
    if kind == "input_ids" and not all(type(token_id) is int for token_id in value):
        raise ValueError("input_ids: not all of them are integers")
    if kind == "messages" and not all(isinstance(message, dict) for message in value):
        raise ValueError('messages: write [{"role": "user", "content": "..."}, ...]')
    if GENERATED in values:
        raise ValueError(
            f"already has the key {GENERATED!r}, under which the output stores the sampled text; rename it"
        )
    return values


def encode(
    loaded: LoadedModel, source: Source, length: int, *, chat: bool, special_tokens: SpecialTokens = "refuse"
) -> Request:
    """Encode a source as a request.

    Raises:
        UserError: where it does not fit the model or its tokenizer.
    """
    match source:
        case {"messages": messages}:
            return encode_messages(loaded, messages, length, source.get("tools"))
        case {"prompt": prompt} if chat:
            return encode_messages(loaded, [{"role": "user", "content": prompt}], length, source.get("tools"))
        case {"prompt": prompt}:
            return encode_prompt(loaded, prompt, length, special_tokens)
        case {"text": text}:
            return encode_infilling(loaded, text)
        case {"input_ids": token_ids}:
            return encode_ids(loaded, token_ids, length)
    return encode_prompt(loaded, None, length)
