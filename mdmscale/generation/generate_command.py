"""`generate`: sample text from a model folder or a finished run. Samples go to stdout, the rest to stderr."""

import argparse
import os
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

from mdmscale.config.data import SpecialTokens
from mdmscale.generation.options import Cache, Eos, GenerationOptions, Remasking, Schedule, Scores
from mdmscale.generation.presets import PRESETS, preset_options
from mdmscale.generation.sources import read_sources
from mdmscale.generation.task import GenerationTask
from mdmscale.models.opening import describe_model, find_model_folder
from mdmscale.system.errors import UserError

EXAMPLES = """\
examples:
  # sample from the quickstart's model without a prompt
  python tools/generate.py runs/quickstart --num-samples 4 --length 64 --temperature 1

  # continue a prompt: four tokens in each step, drawn from the model's distribution
  python tools/generate.py runs/quickstart --prompt "def main(" --length 64 --steps 16 --temperature 1

  # fill in masked tokens, and show every step
  python tools/generate.py runs/quickstart --text "for <|mask|> in <|mask|><|mask|>:" --watch

  # decode as LLaDA's own generate.py does
  python tools/generate.py path/to/model --preset llada --chat --prompt "What is 12 * 12?" --length 64

  # LLaDA's blocks, several tokens in a pass where the model is sure, and a cache of finished blocks
  python tools/generate.py path/to/model --chat --prompt-file questions.txt --length 256 --block-length 32 \\
      --threshold 0.9 --cache > answers.txt

  # a file of prompts on two devices; after an interruption, the same command continues
  torchrun --nproc-per-node 2 tools/generate.py path/to/model --input prompts.jsonl --output answers.jsonl

Each line of --input is {"prompt": ...}, {"messages": [...]}, {"text": ...} with masks, or {"input_ids":
[...]}. Each line of --output is the input's line with "sample", "generated" and "num_forwards" added.

Special tokens that are written out: in a prompt say what is meant with --special-tokens; in messages they are
plain text, so that no message ends its own turn; in a --text they are read, or there would be no masks.
"""


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog="generate.py",
        description="Sample text from a masked diffusion language model by denoising masked tokens.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "path", type=Path, metavar="PATH", help="Hugging Face model folder, or the folder of a finished run"
    )
    _add_sources(parser.add_argument_group("what to sample"))
    add_sampling(parser.add_argument_group("how to sample"))
    _add_output(parser.add_argument_group("output and running"))
    return parser


def _add_sources(group: argparse._ArgumentGroup) -> None:
    sources = group.add_mutually_exclusive_group()
    sources.add_argument(
        "--prompt", action="append", metavar="TEXT", help="a text to continue; can be repeated"
    )
    sources.add_argument(
        "--prompt-file", type=Path, metavar="FILE", help="UTF-8 file with one prompt on each line"
    )
    sources.add_argument(
        "--text", action="append", metavar="TEXT", help="a text with mask tokens to fill in; can be repeated"
    )
    sources.add_argument("--input", type=Path, metavar="FILE", help="JSONL file (see below); needs --output")
    group.add_argument(
        "--chat", action="store_true", help="put each prompt into the tokenizer's chat template"
    )
    group.add_argument(
        "--special-tokens",
        choices=get_args(SpecialTokens),
        default="refuse",
        help="special tokens written out in a prompt: refuse it; read them as tokens (a prompt that was "
        "rendered beforehand); or take them as ordinary text (default: refuse)",
    )
    group.add_argument(
        "--num-samples", type=int, default=1, metavar="N", help="samples for each prompt or text (default: 1)"
    )


def add_sampling(group: argparse._ArgumentGroup) -> None:
    """The fields of GenerationOptions. Those not given are absent, so that a preset can set them."""
    group.add_argument(
        "--preset",
        choices=list(PRESETS),
        metavar="NAME",
        help=f"settings to start from; the options below replace some of them: {', '.join(PRESETS)} (see "
        "docs/generation.md); instruct models want --chat too",
    )

    def add(name: str, **values: Any) -> None:
        group.add_argument(f"--{name}", default=argparse.SUPPRESS, **values)

    add("length", type=int, metavar="N", help="tokens in each response (default: 128)")
    add(
        "block-length",
        type=int,
        metavar="N",
        help="fill in blocks of N tokens, from left to right (default: one block of all tokens)",
    )
    _add_schedule(add)
    _add_order(add)
    _add_drawing(add)
    add(
        "guidance",
        type=float,
        metavar="W",
        help="classifier-free guidance: follow the prompt more closely; doubles the cost (default: 0)",
    )
    add(
        "eos",
        choices=get_args(Eos),
        help="stop: do not compute blocks after an EOS; keep: compute them; late: as stop, and commit EOS "
        "after all other tokens; never: do not sample EOS (default: stop)",
    )
    add(
        "cache",
        nargs="?",
        const="prefix",
        choices=get_args(Cache),
        help="with --block-length: compute keys and values once per block for the tokens before it (prefix, "
        "also if no word follows), or for all outside it (dual); faster, but the text can differ",
    )
    add("seed", type=int, metavar="N", help="seed of the samples (default: 0)")


def _add_schedule(add: Callable[..., None]) -> None:
    add(
        "steps",
        type=int,
        metavar="N",
        help="forward passes: more are better and slower (default: one for each token)",
    )
    add(
        "schedule",
        choices=get_args(Schedule),
        help="how the steps share the tokens: evenly; as Dream does; or each token goes in a step that it "
        "draws (independent: Dream's origin, with --remasking random) (default: even)",
    )
    add(
        "threshold",
        type=float,
        metavar="P",
        help="instead of --steps: each pass commits all tokens of at least this confidence, such as 0.9",
    )
    add(
        "factor",
        type=float,
        metavar="F",
        help="instead of --steps: each pass commits the n best tokens, as long as (n + 1)(1 - confidence of "
        "the n-th) < F, such as 1 (Fast-dLLM)",
    )


def _add_order(add: Callable[..., None]) -> None:
    add(
        "remasking",
        choices=get_args(Remasking),
        help="which tokens are committed first: those with the highest probability (confidence), the largest "
        "lead over the second likeliest (margin) or the lowest entropy, or random ones (default: confidence)",
    )
    add(
        "scores",
        choices=get_args(Scores),
        help="take these from the model's distribution (as LLaDA does), or from the one that tokens are "
        "drawn from, after temperature, top-p and top-k (sampling; as Dream does) (default: model)",
    )
    add(
        "order-temperature",
        type=float,
        metavar="T",
        help="above 0, draw the tokens to commit instead of taking the best (Dream's alg_temp) (default: 0)",
    )


def _add_drawing(add: Callable[..., None]) -> None:
    add(
        "temperature",
        type=float,
        metavar="T",
        help="0 takes the likeliest token; 1 draws from the model's distribution (default: 0)",
    )
    add(
        "top-p",
        type=float,
        metavar="P",
        help="draw only from the likeliest tokens that together have this probability (default: 1)",
    )
    add("top-k", type=int, metavar="N", help="draw only from the N likeliest tokens (default: all)")


def _add_output(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--batch-size", type=int, default=8, metavar="N", help="texts denoised together (default: 8)"
    )
    group.add_argument(
        "--dtype", choices=("fp32", "bf16"), help="precision of the weights (default: as saved)"
    )
    group.add_argument(
        "--output", type=Path, metavar="FILE", help="write JSONL to this file instead of text to stdout"
    )
    group.add_argument("--overwrite", action="store_true", help="replace an --output that exists")
    group.add_argument(
        "--raw", action="store_true", help="show all tokens: special ones too, and those after an EOS"
    )
    group.add_argument("--watch", action="store_true", help="show the texts after every forward pass")
    group.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher adds it


def main(argv: list[str] | None = None) -> int:
    """Run the command; a launcher runs it on every rank.

    Raises:
        UserError: where an option, a prompt or the model folder is wrong.
    """
    arguments = build_parser().parse_args(argv)
    options = options_of(arguments)
    _check_command(arguments)
    sources = read_sources(arguments)
    description = describe_model(find_model_folder(arguments.path))
    has_responses = any("text" not in source and "input_ids" not in source for source in sources)
    if has_responses and options.length > description.max_length:
        raise UserError(
            f"length = {options.length}: exceeds the model's max_position_embeddings = "
            f"{description.max_length}"
        )
    task = GenerationTask(
        description,
        options,
        sources,
        num_samples=arguments.num_samples,
        batch_size=arguments.batch_size,
        chat=arguments.chat,
        raw=arguments.raw,
        dtype=arguments.dtype,
        special_tokens=arguments.special_tokens,
    )
    if arguments.output is None:
        from mdmscale.generation.display import print_texts

        print_texts(task, watch=arguments.watch)
    else:
        from mdmscale.generation.writing import write_jsonl

        write_jsonl(task, arguments.output, overwrite=arguments.overwrite)
    return 0


def options_of(arguments: argparse.Namespace) -> GenerationOptions:
    """The preset's options, or the defaults, with those that are given in their place."""
    names = {field.name for field in fields(GenerationOptions)}
    given = {name: value for name, value in vars(arguments).items() if name in names}
    return (
        GenerationOptions(**given) if arguments.preset is None else preset_options(arguments.preset, **given)
    )


def _check_command(arguments: argparse.Namespace) -> None:
    problems = [
        f"--{name.replace('_', '-')} {getattr(arguments, name)}: must be at least 1"
        for name in ("num_samples", "batch_size")
        if getattr(arguments, name) < 1
    ]
    if arguments.output is None:
        if arguments.input is not None:
            problems.append(
                f"--input {arguments.input}: needs --output FILE, to which the samples are written"
            )
        if arguments.overwrite:
            problems.append("--overwrite: goes with --output")
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            problems.append("several ranks share the work through a file; give --output FILE")
    elif arguments.watch:
        problems.append("--watch and --output: give only one of them")
    if arguments.output is not None and arguments.output == arguments.input:
        problems.append(f"--output {arguments.output}: is also the --input, which would be overwritten")
    if problems:
        raise UserError(*problems)
