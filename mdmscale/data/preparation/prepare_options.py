"""The options of `prepare`."""

import argparse
from pathlib import Path
from typing import get_args

from mdmscale.config.data import SpecialTokens, TrainOn
from mdmscale.data.preparation.folders import DEFAULT_SPLIT
from mdmscale.models.mask_spelling import MASK_IN_TEXT

_EXAMPLES = """\
examples:
  # the corpus of the quickstart: the Python standard library, and a tokenizer trained on it
  python tools/prepare_data.py stdlib --train-tokenizer 1024 --output data/quickstart

  # JSONL and parquet files, with a model's tokenizer
  python tools/prepare_data.py corpus/*.jsonl more.parquet --tokenizer models/llada --output data/corpus

  # the source files of a folder, and a Hugging Face dataset
  python tools/prepare_data.py ~/code --suffix .py .md --tokenizer models/llada --output data/code
  python tools/prepare_data.py hf:wikimedia/wikipedia:20231101.de --tokenizer models/llada --output data/wiki

  # prompts and responses: see what is trained, then write it
  python tools/prepare_data.py sft.jsonl --kind sft --tokenizer models/llada --show
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
        help="files (.jsonl, .json, .csv, .tsv, .parquet, .arrow; any other file is one document; .gz, .bz2, "
        ".xz and .zst are unpacked), folders (also of save_to_disk), globs, hf:NAME[:CONFIG], or stdlib "
        "(5 MB of the Python standard library)",
    )
    add("--output", type=Path, metavar="DIR", help="folder to write")
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
    _add_input_options(parser)
    _add_text_options(parser)
    _add_sft_options(parser)
    return parser


def _add_input_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("what is read").add_argument
    add(
        "--suffix",
        nargs="+",
        metavar="END",
        help="of a folder, read the files with these endings, compressed or not (default: .txt, for --kind "
        "tokens, .jsonl .jsonlines .ndjson .json .csv .tsv .parquet .arrow)",
    )
    add(
        "--split",
        default=DEFAULT_SPLIT,
        help="split of a Hugging Face dataset, and of a folder whose files are named by split or which "
        "save_to_disk has written (default: train)",
    )
    add(
        "--mask-in-text",
        choices=MASK_IN_TEXT,
        default="error",
        help="what happens to a text that holds the mask token because that is an ordinary word of the "
        "tokenizer: refuse it, leave it out, or spell the word with other tokens (default: error)",
    )


def _add_text_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("text (--kind tokens)").add_argument
    add("--text-key", default="text", metavar="KEY", help="key or column that holds the text (default: text)")
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
    add(
        "--train-on",
        choices=get_args(TrainOn),
        default="last",
        help="what of a conversation is trained: the assistant's last turn, all of its turns, or all that "
        "follows the prompt (default: last)",
    )
    add(
        "--special-tokens",
        choices=get_args(SpecialTokens),
        default="refuse",
        help="special tokens written out in a prompt, response or text: refuse the line, read them as tokens "
        "(text that was rendered beforehand), or take them as ordinary text (default: refuse)",
    )
    add(
        "--show",
        type=_positive_integer,
        nargs="?",
        const=3,
        metavar="N",
        help="print the first N samples as text with what is trained in colour, and exit (default: 3)",
    )


def _positive_integer(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value
