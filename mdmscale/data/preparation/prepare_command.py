"""`prepare`: tokenise text or SFT data into a folder of shards, which appears only when it is complete."""

import argparse
import os
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from mdmscale.data.preparation.documents import Document, read_documents
from mdmscale.data.preparation.encode import EncodedBatch, encode_documents
from mdmscale.data.preparation.inputs import Input, find_inputs, input_bytes
from mdmscale.data.preparation.sft import encode_sft
from mdmscale.data.preparation.shard_set import ShardSetWriter
from mdmscale.data.preparation.tokenizer_training import train_tokenizer
from mdmscale.models.hub import check_local
from mdmscale.models.tokenizer import load_tokenizer
from mdmscale.system.errors import UserError
from mdmscale.system.files import write_object
from mdmscale.system.folders import published_folder

_SUMMARY = "dataset.json"
_BYTES_PER_WORKER = 16 * 2**20

_EXAMPLES = """\
examples:
  # the corpus of the quickstart: the Python standard library, and a tokenizer trained on it
  python tools/prepare_data.py stdlib --train-tokenizer 1024 --output data/quickstart

  # JSONL and parquet files, with a model's tokenizer
  python tools/prepare_data.py corpus/*.jsonl more.parquet --tokenizer models/llada --output data/corpus

  # the source files of a folder, and a Hugging Face dataset
  python tools/prepare_data.py ~/code --suffix .py .md --tokenizer models/llada --output data/code
  python tools/prepare_data.py hf:wikimedia/wikipedia:20231101.de --tokenizer models/llada --output data/wiki

  # prompts and responses
  python tools/prepare_data.py sft.jsonl --kind sft --sequence-length 1024 --tokenizer models/llada \\
      --output data/sft
"""


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog="prepare_data.py",
        description="Tokenise text or SFT data into shards in Megatron's indexed format (.bin, .idx).",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="files (.jsonl, .parquet, .arrow; any other file is one document), folders, globs, "
        "hf:NAME[:CONFIG], or stdlib (5 MB of the Python standard library)",
    )
    add("--output", required=True, type=Path, metavar="DIR", help="folder to write")
    add("--overwrite", action="store_true", help="replace DIR if this command has written it")
    tokenizer = parser.add_mutually_exclusive_group(required=True)
    tokenizer.add_argument("--tokenizer", metavar="NAME", help="tokenizer folder or hub id")
    tokenizer.add_argument(
        "--train-tokenizer",
        type=int,
        metavar="VOCAB",
        help="train a tokenizer of VOCAB tokens and save it as DIR/tokenizer",
    )
    add("--kind", choices=["tokens", "sft"], default="tokens", help="kind of data (default: tokens)")
    _add_text_options(parser)
    _add_sft_options(parser)
    return parser


def _add_text_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("text (--kind tokens)").add_argument
    add("--text-key", default="text", metavar="KEY", help="key or column that holds the text (default: text)")
    add(
        "--suffix",
        nargs="+",
        default=[".txt", ".jsonl", ".parquet", ".arrow"],
        metavar="END",
        help="of a folder, read the files with these endings (default: .txt .jsonl .parquet .arrow)",
    )
    add("--split", default="train", help="split of a Hugging Face dataset (default: train)")
    add(
        "--shard-tokens",
        type=_positive_integer,
        default=2**28,
        metavar="N",
        help="largest number of tokens in a shard (default: 2^28)",
    )
    add(
        "--workers",
        type=_positive_integer,
        metavar="N",
        help="number of processes (default: one for each CPU, fewer for small inputs)",
    )


def _add_sft_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("prompts and responses (--kind sft)").add_argument
    add("--sequence-length", type=_positive_integer, metavar="N", help="largest number of tokens in a sample")
    add(
        "--too-long",
        choices=["error", "truncate", "drop"],
        default="error",
        help="what happens to longer samples: refuse them, cut their responses, or leave them out "
        "(default: error)",
    )


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    Raises:
        UserError: for mistakes in the options or the data.
    """
    arguments = build_parser().parse_args(argv)
    started = time.monotonic()
    _check_output(arguments.output, arguments.overwrite)
    if arguments.tokenizer is not None:
        check_local("--tokenizer", arguments.tokenizer)
    summary = _prepare_sft(arguments) if arguments.kind == "sft" else _prepare_tokens(arguments)
    _print_summary(summary, arguments.output, time.monotonic() - started)
    return 0


def _positive_integer(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value


def _prepare_tokens(arguments: argparse.Namespace) -> dict[str, object]:
    inputs = find_inputs(arguments.inputs, arguments.suffix)
    with published_folder(arguments.output) as folder:
        tokenizer = arguments.tokenizer
        if arguments.train_tokenizer is not None:
            tokenizer = str(folder / "tokenizer")
            texts = (document.text for document in _documents(inputs, arguments))
            train_tokenizer(texts, arguments.train_tokenizer, Path(tokenizer))
        vocab_size = len(load_tokenizer(tokenizer, "--tokenizer"))
        with ShardSetWriter(folder, vocab_size, arguments.shard_tokens) as shards:
            workers = arguments.workers or _default_workers(inputs)
            encoded = encode_documents(_documents(inputs, arguments), tokenizer, workers)
            for batch in _with_progress(encoded, input_bytes(inputs)):
                shards.add(batch)
        if not shards.num_documents:
            raise UserError(f"{' '.join(arguments.inputs)}: holds no text, so there is nothing to write")
        summary = {
            "kind": "tokens",
            "inputs": arguments.inputs,
            "tokenizer": arguments.tokenizer or "tokenizer",
            **shards.summary(),
        }
        _write_summary(folder, summary)
    return summary


def _documents(inputs: list[Input], arguments: argparse.Namespace) -> Iterator[Document]:
    return read_documents(inputs, arguments.text_key, arguments.split)


def _prepare_sft(arguments: argparse.Namespace) -> dict[str, object]:
    if arguments.sequence_length is None:
        raise UserError("--kind sft needs --sequence-length, the largest number of tokens in a sample")
    if arguments.tokenizer is None:
        raise UserError("--kind sft needs --tokenizer, the tokenizer of the model; it does not train one")
    paths = [item for item in find_inputs(arguments.inputs, [".jsonl"]) if isinstance(item, Path)]
    wrong = [path for path in paths if path.suffix != ".jsonl"]
    if wrong or not paths:
        raise UserError(f"--kind sft reads .jsonl files, not {wrong[0] if wrong else arguments.inputs[0]}")
    with published_folder(arguments.output) as folder:
        counts = encode_sft(
            paths,
            load_tokenizer(arguments.tokenizer, "--tokenizer"),
            folder / "shard-00000",
            sequence_length=arguments.sequence_length,
            too_long=arguments.too_long,
        )
        summary = {
            "kind": "sft",
            "inputs": arguments.inputs,
            "tokenizer": arguments.tokenizer,
            "sequence_length": arguments.sequence_length,
            **asdict(counts),
        }
        _write_summary(folder, summary)
    return summary


def _check_output(output: Path, overwrite: bool) -> None:
    if not output.exists():
        return
    if not overwrite:
        raise UserError(f"--output {output}: exists already; choose another folder or give --overwrite")
    if not (output / _SUMMARY).is_file():
        raise UserError(
            f"--output {output}: was not made by this command ({_SUMMARY} is missing), so it is not replaced"
        )


def _write_summary(folder: Path, summary: dict[str, object]) -> None:
    write_object(folder / _SUMMARY, summary)


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
