"""What to score, as the user names it: texts, records of files and datasets, documents of a corpus."""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from mdmscale.data.preparation.documents import read_documents
from mdmscale.data.preparation.endings import DATA_ENDINGS
from mdmscale.data.preparation.formats import holds_records, read_records
from mdmscale.data.preparation.inputs import Input, find_inputs
from mdmscale.data.preparation.jsonl import Record
from mdmscale.data.preparation.tables import shown_names
from mdmscale.system.errors import UserError
from mdmscale.system.unicode import check_strings

# A record with one of these is a response, as data/preparation/sft_record.py encodes it.
RESPONSE_FIELDS = {"messages", "prompt", "input_ids"}


@dataclass(frozen=True)
class Source:
    """A record, and its kind: text, response, choices, or document (token ids of a corpus)."""

    kind: str
    values: dict[str, Any]
    where: str  # for messages


def read_sources(arguments: argparse.Namespace) -> list[Source]:
    """The sources that the command line names, in order, up to --limit of them.

    Raises:
        UserError: for files that cannot be read, and records that are wrong.
    """
    given = [name for name in ("text", "data", "corpus") if getattr(arguments, name) not in (None, [])]
    if len(given) != 1:
        raise UserError("give what to score by one of --text, --data and --corpus")
    if arguments.limit is not None and arguments.limit < 1:
        raise UserError(f"--limit {arguments.limit}: must be at least 1")
    if arguments.held_out is not None and arguments.corpus is None:
        raise UserError(f"--held-out {arguments.held_out}: goes with --corpus")
    readers = {"text": _given_texts, "data": _records, "corpus": _documents}
    sources = list(islice(readers[given[0]](arguments), arguments.limit))
    if not sources:
        raise UserError(f"--{given[0]} {getattr(arguments, given[0])}: holds nothing to score")
    return sources


def _given_texts(arguments: argparse.Namespace) -> Iterator[Source]:
    for text in arguments.text:
        if not text:
            raise UserError("--text '': is empty; give a text to score")
        yield Source("text", {"text": text}, f"--text {text[:40]!r}")


def _records(arguments: argparse.Namespace) -> Iterator[Source]:
    suffixes = arguments.suffix or list(DATA_ENDINGS)
    for item in find_inputs(arguments.data, suffixes, arguments.split):
        yield from _rows(item, arguments) if holds_records(item) else _whole_file(item, arguments)


def _whole_file(item: Input, arguments: argparse.Namespace) -> Iterator[Source]:
    for document in read_documents([item], arguments.text_key, arguments.split):
        yield Source("text", {"text": document.text}, document.where)


def _rows(item: Input, arguments: argparse.Namespace) -> Iterator[Source]:
    for record in read_records(item, arguments.split):
        yield as_source(record, arguments.text_key)


def as_source(record: Record, text_key: str = "text") -> Source:
    """A record by its kind, with the fields that the kind needs.

    Raises:
        UserError: naming the record, and what it has instead of a field.
    """
    values, where = record.values, record.where
    check_strings(values, where)
    if "choices" in values:
        _check_choices(values, where)
        return Source("choices", values, where)
    if not RESPONSE_FIELDS.isdisjoint(values):
        return Source("response", values, where)
    if text_key in values:
        text = values[text_key]
        if not isinstance(text, str) or not text:
            raise UserError(
                f"{where}: {text_key!r} is {'empty' if text == '' else 'not a text'}; leave it out"
            )
        return Source("text", {"text": text}, where)
    raise UserError(
        f"{where}: has the fields {shown_names(values)}; expected {text_key} (see --text-key), prompt and "
        "response, messages, or prompt, choices and answer"
    )


def _check_choices(values: dict[str, Any], where: str) -> None:
    """Refuse a question whose answers cannot be scored."""
    problems = []
    choices, answer = values["choices"], values.get("answer")
    if not isinstance(values.get("prompt"), str):
        problems.append(f"{where}: 'prompt' is missing or not a text; it has {shown_names(values)}")
    if not isinstance(choices, list) or not all(isinstance(each, str) and each for each in choices):
        problems.append(f"{where}: 'choices' must be a list of texts that are not empty")
    elif len(choices) < 2:
        problems.append(f"{where}: 'choices' has {len(choices)}, and two are needed to choose")
    elif type(answer) is not int:
        problems.append(f"{where}: 'answer' = {answer!r} is not the number of a choice, counted from 0")
    elif not 0 <= answer < len(choices):
        problems.append(f"{where}: 'answer' = {answer} is out of range; choices are 0 .. {len(choices) - 1}")
    if problems:
        raise UserError(*problems)


def _documents(arguments: argparse.Namespace) -> Iterator[Source]:
    """The documents of shards: all, or those that a run with data.held_out holds out."""
    from mdmscale.data.held_out import held_out_indices
    from mdmscale.data.shards import find_prefixes, open_shards, prompts_path

    share = arguments.held_out
    if share is not None and not 0 < share < 1:
        raise UserError(f"--held-out {share}: must be between 0 and 1, as data.held_out of the run")
    try:
        prefixes = find_prefixes([arguments.corpus])
    except UserError as error:
        raise UserError(str(error).replace("data.path", "--corpus")) from None
    if any(prompts_path(prefix).exists() for prefix in prefixes):
        raise UserError(
            f"--corpus {arguments.corpus}: holds prompts and responses; give their file to --data"
        )
    shards = open_shards(prefixes)
    counts = [shard.num_documents for shard in shards]
    numbers = range(sum(counts)) if share is None else held_out_indices(sum(counts), share, "documents")
    for number in map(int, numbers):
        owner, local = 0, number
        while local >= counts[owner]:
            owner, local = owner + 1, local - counts[owner]
        start, stop = shards[owner].document_span(local)
        values = {"ids": shards[owner].tokens(start, stop).tolist()}
        yield Source("document", values, f"{prefixes[owner]}, document {local}")
