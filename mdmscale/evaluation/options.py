"""The options that every evaluation of a model has."""

import argparse
from pathlib import Path

from mdmscale.system.errors import UserError


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the model's path, and how it runs."""
    parser.add_argument(
        "path",
        metavar="PATH",
        help="a run, a checkpoint of a run, a Hugging Face folder, or a hub id (owner/name)",
    )
    parser.add_argument(
        "--autoregressive",
        action="store_true",
        help="PATH is an ordinary autoregressive model: measure it as it is, from left to right",
    )
    group = parser.add_argument_group("output and running")
    group.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="write results.json here; an interrupted command continues from it. Several ranks need it",
    )
    group.add_argument("--overwrite", action="store_true", help="replace an --output that exists")
    group.add_argument(
        "--batch-size", type=int, default=8, metavar="N", help="rows of a forward pass (default: 8)"
    )
    group.add_argument(
        "--dtype", choices=("fp32", "bf16"), help="precision of the weights (default: as saved)"
    )
    group.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher adds it


def check_model_options(arguments: argparse.Namespace, world_size: int) -> None:
    """Refuse what does not go together, before anything slow.

    Raises:
        UserError: naming the options.
    """
    problems = []
    if arguments.batch_size < 1:
        problems.append(f"--batch-size {arguments.batch_size}: must be at least 1")
    if arguments.output is None and arguments.overwrite:
        problems.append("--overwrite: goes with --output")
    if arguments.output is None and world_size > 1:
        problems.append("several ranks share the work through a file; give --output FILE")
    if problems:
        raise UserError(*problems)
