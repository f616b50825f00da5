"""The options of `decide`."""

import argparse
import os
from pathlib import Path

from mdmscale.analysis.decision.arms import FINE_TUNING, FROM_SCRATCH
from mdmscale.system.arguments import names
from mdmscale.system.errors import UserError

PARTS = ("fine_tuning", "from_scratch")

EPILOG = """\
Small models, many seeds of each in one process, trained with the samplers, masks and weights of training.

fine_tuning   a model that is competent at following tables learns other tables from 256 questions, with or
              without clipping, at a constant or a decaying learning rate. First a gate: 8 rows a sample and a
              batch of four times the size must both beat one row, or noise does not limit the task.
from_scratch  a model learns the source of the standard library, at 8 forward rows a step for all arms.

Learning rates are tuned for every arm on seeds and texts of their own. They are fixed in a file before the
held-out set is opened. The same command continues an interrupted study.

examples:
  python tools/decide.py --output runs/decide --dry-run    # how long it takes on this machine
  python tools/decide.py --output runs/decide
  python tools/decide.py --output runs/decide_fast --parts fine_tuning \\
    --arms standard,rows_8,batch_4x,independent_2,mirror,exact_pair --seeds 8
"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="decide.py",
        description="Decide which variance reduction changes results, on many seeds of small models.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder of the study")
    parser.add_argument(
        "--parts", type=names, default=list(PARTS), metavar="P,P", help=f"default: {','.join(PARTS)}"
    )
    known = ",".join(dict.fromkeys(arm.name for arm in (*FINE_TUNING, *FROM_SCRATCH)))
    parser.add_argument("--arms", type=names, metavar="A,A", help=f"default: all of {known}")
    parser.add_argument(
        "--seeds", type=int, metavar="N", help="final seeds (default: 24 in fine-tuning, 8 from scratch)"
    )
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="processes (default: one a core)"
    )
    parser.add_argument(
        "--past-gate", action="store_true", help="go on where noise is not seen to limit the task"
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes: a test that it runs, no results")
    parser.add_argument("--dry-run", action="store_true", help="only estimate how long the study takes")
    return parser


def check_options(arguments: argparse.Namespace) -> None:
    """Refuse values that cannot be meant.

    Raises:
        UserError: naming each.
    """
    problems = [
        f"--parts {name}: choose from {', '.join(PARTS)}" for name in arguments.parts if name not in PARTS
    ]
    if arguments.seeds is not None and arguments.seeds < 2:
        problems.append(f"--seeds {arguments.seeds}: must be at least 2, as spreads over seeds are compared")
    if arguments.jobs < 1:
        problems.append(f"--jobs {arguments.jobs}: must be at least 1")
    if problems:
        raise UserError(*problems)
