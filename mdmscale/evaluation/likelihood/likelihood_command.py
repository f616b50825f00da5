"""`evaluate likelihood`: nats a token, bits a byte, perplexity of texts; accuracy of choices."""

import argparse
from dataclasses import asdict
from typing import Any, get_args

from mdmscale.config.data import SpecialTokens
from mdmscale.data.preparation.folders import DEFAULT_SPLIT
from mdmscale.evaluation.likelihood.masks import SAMPLERS
from mdmscale.evaluation.likelihood.measuring import Measurement, measure
from mdmscale.evaluation.likelihood.plan import METHODS, LikelihoodOptions
from mdmscale.evaluation.likelihood.sources import read_sources
from mdmscale.evaluation.options import add_model_options
from mdmscale.models.opening import ModelDescription
from mdmscale.parallel.work_group import WorkGroup
from mdmscale.system.digest import digest
from mdmscale.system.errors import UserError

EXAMPLES = """\
examples:
  # a text, and the files of a folder
  python tools/evaluate.py likelihood runs/quickstart --text "for step in range(10):"
  python tools/evaluate.py likelihood runs/quickstart --data src/ --suffix .py --max-length 128

  # the documents that a run holds out of training, with results to compare
  python tools/evaluate.py likelihood runs/quickstart --corpus data/quickstart --held-out 0.02 --output a.json
  python tools/evaluate.py compare a.json b.json

  # responses given their prompts ({"prompt", "response"} or {"messages"}), and questions
  # ({"prompt", "choices": [...], "answer": 2})
  python tools/evaluate.py likelihood runs/sft --data test.jsonl --limit 200
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add_model_options(parser)
    add_data_options(parser)
    defaults = LikelihoodOptions()
    add = parser.add_argument_group("how it is measured").add_argument
    add(
        "--method",
        choices=METHODS,
        default=defaults.method,
        help="the bound over all orders (the default), the chain from left to right, or blocks from left to "
        "right with all orders within a block; an autoregressive model is always scored by the chain",
    )
    add(
        "--estimator",
        choices=tuple(SAMPLERS),
        default=defaults.estimator,
        help="masks of stratified counts with controls (the default), stratified pairs, or LLaDA's "
        "Monte Carlo",
    )
    add(
        "--rows",
        type=int,
        default=defaults.rows,
        metavar="N",
        help=f"masks of a text, or of each block: a multiple of 4 (default: {defaults.rows}); a text with no "
        "more than N masks is measured exactly",
    )
    add("--block-length", type=int, metavar="N", help="tokens of a block, for --method block")
    add("--seed", type=int, default=defaults.seed, help="of the masks, equal for every model (default: 0)")


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what is scored."""
    add = parser.add_argument_group("what is scored").add_argument
    add("--text", action="append", metavar="TEXT", help="a text; may be given several times")
    add(
        "--data",
        nargs="+",
        metavar="INPUT",
        help="files, folders, globs, hf:NAME[:CONFIG] or stdlib, read as by tools/prepare_data.py; records "
        "have text, prompt and response, messages, or prompt, choices and answer",
    )
    add("--corpus", metavar="DIR", help="documents of token shards, written by tools/prepare_data.py")
    add("--held-out", type=float, metavar="SHARE", help="of the corpus, what data.held_out = SHARE holds out")
    add("--limit", type=int, metavar="N", help="only the first N texts")
    add("--text-key", default="text", metavar="KEY", help="key or column of a text (default: text)")
    add("--suffix", nargs="+", metavar="END", help="of a folder, the files with these endings")
    add("--split", default=DEFAULT_SPLIT, help="split of a dataset or folder (default: train)")
    add(
        "--max-length",
        type=int,
        metavar="N",
        help="longer texts are scored in windows of N tokens (default: the model's longest)",
    )
    add(
        "--context",
        type=int,
        default=0,
        metavar="N",
        help="tokens of a long text that each later window is given and does not score (default: 0)",
    )
    add(
        "--special-tokens",
        choices=get_args(SpecialTokens),
        default="refuse",
        help="special tokens that are written out in prompts and responses: refuse, read or text (default: "
        "refuse); in texts they are always text",
    )


def run(arguments: argparse.Namespace, description: ModelDescription, group: WorkGroup) -> None:
    """Measure, print the summary, and write --output if there is one."""
    options = LikelihoodOptions(
        arguments.method, arguments.estimator, arguments.rows, arguments.block_length, arguments.seed
    )
    check_lengths(arguments, description)
    sources = read_sources(arguments)
    inputs = [(source.kind, source.values) for source in sources]
    settings: dict[str, Any] = {
        **asdict(options),
        "max_length": arguments.max_length,
        "context": arguments.context,
        "special_tokens": arguments.special_tokens,
        "dtype": arguments.dtype,
        "inputs": digest(inputs),
    }
    measurement = Measurement(
        model=arguments.path,
        description=description,
        options=options,
        sources=sources,
        settings=settings,
        batch_size=arguments.batch_size,
        output=arguments.output,
    )
    measure(measurement, group, overwrite=arguments.overwrite)


def check_lengths(arguments: argparse.Namespace, description: ModelDescription) -> None:
    """Refuse windows that do not fit the model.

    Raises:
        UserError: naming the option.
    """
    longest, context = arguments.max_length, arguments.context
    if longest is not None and not 2 <= longest <= description.max_length:
        raise UserError(
            f"--max-length {longest}: must be from 2 to the model's max_position_embeddings = "
            f"{description.max_length}"
        )
    if not 0 <= context < (longest or description.max_length):
        raise UserError(f"--context {context}: must be at least 0 and below the tokens of a window")
