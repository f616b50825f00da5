"""`prepare`: tokenise text or SFT data into a folder of shards, which appears only when it is complete."""

import argparse
import os
import time
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path

from mdmscale.data.preparation.documents import Document, read_documents
from mdmscale.data.preparation.encode import EncodedBatch, encode_documents
from mdmscale.data.preparation.endings import DATA_ENDINGS, RECORD_ENDINGS
from mdmscale.data.preparation.formats import holds_records
from mdmscale.data.preparation.inputs import Input, find_inputs, input_bytes
from mdmscale.data.preparation.prepare_options import build_parser
from mdmscale.data.preparation.sft import encode_sft, read_samples
from mdmscale.data.preparation.shard_set import ShardSetWriter
from mdmscale.data.preparation.tokenizer_training import train_tokenizer
from mdmscale.data.tokenizer_record import DATASET_FILE, record_tokenizer
from mdmscale.diffusion.sample import Sample
from mdmscale.models.hub import check_local
from mdmscale.models.tokenizer import load_tokenizer, num_token_ids
from mdmscale.system.errors import UserError
from mdmscale.system.files import write_object
from mdmscale.system.folders import published_folder

_BYTES_PER_WORKER = 16 * 2**20


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    Raises:
        UserError: for mistakes in the options or the data.
    """
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if arguments.show is not None:
        return _show(arguments)
    if arguments.output is None:
        parser.error("--output DIR is required (without --show)")
    started = time.monotonic()
    _check_output(arguments.output, arguments.overwrite)
    if arguments.tokenizer is not None:
        check_local("--tokenizer", arguments.tokenizer)
    summary = _prepare_sft(arguments) if arguments.kind == "sft" else _prepare_tokens(arguments)
    _print_summary(summary, arguments.output, time.monotonic() - started)
    return 0


def _prepare_tokens(arguments: argparse.Namespace) -> dict[str, object]:
    inputs = find_inputs(arguments.inputs, arguments.suffix or list(DATA_ENDINGS), arguments.split)
    with published_folder(arguments.output) as folder:
        tokenizer = arguments.tokenizer
        if arguments.train_tokenizer is not None:
            tokenizer = str(folder / "tokenizer")
            texts = (document.text for document in _documents(inputs, arguments))
            train_tokenizer(texts, arguments.train_tokenizer, Path(tokenizer))
        opened = load_tokenizer(tokenizer, "--tokenizer")
        with ShardSetWriter(folder, num_token_ids(opened), arguments.shard_tokens) as shards:
            workers = arguments.workers or _default_workers(inputs)
            documents = _documents(inputs, arguments)
            encoded = encode_documents(documents, tokenizer, workers, arguments.mask_in_text)
            for batch in _with_progress(encoded, input_bytes(inputs)):
                shards.add(batch)
        if not shards.num_documents:
            raise UserError(_no_text(inputs, arguments, shards.num_dropped))
        summary = {
            "kind": "tokens",
            "inputs": arguments.inputs,
            "tokenizer": arguments.tokenizer or "tokenizer",
            **record_tokenizer(opened),
            **shards.summary(),
        }
        if arguments.mask_in_text != "error":
            summary |= {"num_dropped": shards.num_dropped, "num_reencoded": shards.num_reencoded}
        _write_summary(folder, summary)
    return summary


def _no_text(inputs: list[Input], arguments: argparse.Namespace, num_dropped: int) -> str:
    names = " ".join(arguments.inputs)
    if num_dropped:
        return f"{names}: all {num_dropped} documents hold the mask token and are dropped; see --mask-in-text"
    if input_bytes(inputs) == 0:
        return f"{names}: is empty (0 bytes), so there is nothing to write"
    return f"{names}: holds no text, so there is nothing to write"


def _documents(inputs: list[Input], arguments: argparse.Namespace) -> Iterator[Document]:
    return read_documents(inputs, arguments.text_key, arguments.split)


def _prepare_sft(arguments: argparse.Namespace) -> dict[str, object]:
    if arguments.sequence_length is None:
        raise UserError("--kind sft needs --sequence-length, the largest number of tokens in a sample")
    inputs, tokenizer = _sft_inputs(arguments), load_tokenizer(arguments.tokenizer, "--tokenizer")
    with published_folder(arguments.output) as folder:
        counts = encode_sft(
            inputs,
            tokenizer,
            folder / "shard-00000",
            sequence_length=arguments.sequence_length,
            too_long=arguments.too_long,
            split=arguments.split,
            mask_in_text=arguments.mask_in_text,
            train_on=arguments.train_on,
            special_tokens=arguments.special_tokens,
        )
        summary = {
            "kind": "sft",
            "inputs": arguments.inputs,
            "tokenizer": arguments.tokenizer,
            **record_tokenizer(tokenizer),
            "sequence_length": arguments.sequence_length,
            "train_on": arguments.train_on,
            **asdict(counts),
        }
        _write_summary(folder, summary)
    return summary


def _show(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from mdmscale.data.preparation.show import print_samples

    if arguments.kind != "sft":
        raise UserError("--show needs --kind sft: it shows what is trained of prompts and responses")
    inputs, tokenizer = _sft_inputs(arguments), load_tokenizer(arguments.tokenizer, "--tokenizer")
    samples = read_samples(
        inputs,
        tokenizer,
        train_on=arguments.train_on,
        special_tokens=arguments.special_tokens,
        split=arguments.split,
        mask_in_text=arguments.mask_in_text,
    )
    kept = ((where, Sample(each.token_ids, each.trained)) for each, where in samples if each is not None)
    shown = islice(kept, arguments.show)
    print_samples(shown, tokenizer, Console())
    return 0


def _sft_inputs(arguments: argparse.Namespace) -> list[Input]:
    if arguments.tokenizer is None:
        raise UserError("--kind sft needs --tokenizer, the tokenizer of the model; it does not train one")
    inputs = find_inputs(arguments.inputs, arguments.suffix or list(RECORD_ENDINGS), arguments.split)
    if wrong := [item for item in inputs if not holds_records(item)]:
        raise UserError(f"--kind sft reads {' '.join(RECORD_ENDINGS)} files, not {wrong[0]}")
    return inputs


def _check_output(output: Path, overwrite: bool) -> None:
    if not output.exists():
        return
    if not overwrite:
        raise UserError(f"--output {output}: exists already; choose another folder or give --overwrite")
    if not (output / DATASET_FILE).is_file():
        raise UserError(
            f"--output {output}: was not made by this command ({DATASET_FILE} is missing), so it is "
            "not replaced"
        )


def _write_summary(folder: Path, summary: dict[str, object]) -> None:
    write_object(folder / DATASET_FILE, summary)


def _default_workers(inputs: list[Input]) -> int:
    """One worker for each CPU, but no worker that would cost more time to start than it saves."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    size = input_bytes(inputs)
    return cpus if size is None else min(cpus, 1 + size // _BYTES_PER_WORKER)


def _with_progress(batches: Iterator[EncodedBatch], total_bytes: int | None) -> Iterator[EncodedBatch]:
    """The batches, with a progress bar over the bytes of the input where their number is known."""
    from rich.progress import (
        BarColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    counts = TextColumn("{task.fields[documents]:,} documents, {task.fields[tokens]:,} tokens")
    with Progress(
        SpinnerColumn(), BarColumn(), counts, TimeElapsedColumn(), TimeRemainingColumn()
    ) as progress:
        task = progress.add_task("", total=total_bytes, documents=0, tokens=0)
        documents = tokens = 0
        for batch in batches:
            yield batch
            documents, tokens = documents + len(batch.lengths), tokens + len(batch.token_ids)
            progress.update(task, advance=batch.input_bytes, documents=documents, tokens=tokens)


def _print_summary(summary: dict[str, object], output: Path, seconds: float) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=str(output), show_header=False)
    table.add_column(justify="left")
    table.add_column(justify="right")
    for name, value in summary.items():
        if isinstance(value, int | float):
            shown = f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
            table.add_row(name.removeprefix("num_").replace("_", " "), shown)
    table.add_row("seconds", f"{seconds:.1f}")
    Console().print(table)
