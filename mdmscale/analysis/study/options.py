"""The options of `stability`, the command that runs a study."""

import argparse
from pathlib import Path
from typing import get_args

from mdmscale.analysis.study.budgets import Budget
from mdmscale.analysis.study.methods import BUILT_IN
from mdmscale.system.errors import UserError

EPILOG = """\
Every method is a set of overrides of one config, whose steps and batch sizes are the budget. Batch sizes
count samples; a MIRROR pair is one sample with two forward rows.

budgets:
  equal-rows     as many forward rows in a step: methods with pairs get half the samples (the default)
  equal-samples  as many samples in a step, so that pairs cost double: the paper's budget
  equal-wall     as many samples in a step, and as many steps as fit into the reference's time; the seconds of
                 a step come from a short run of each method at the start, one after the other

The reference and the control (the reference with four times the batch) are trained first. If the control is
no better, noise does not limit the task, and methods that lower noise cannot be expected to help.

To continue an interrupted study, or to add methods and seeds, give the command again.

examples, after `make train`:
  python tools/make_arithmetic.py --num 8000 --operators + --output data/arithmetic_2.jsonl \\
    --num-test 500 --test-output data/arithmetic_2_test.jsonl
  python tools/stability_study.py --config configs/stability.yaml --test data/arithmetic_2_test.jsonl \\
    --output runs/stability

  # methods of your own, on a generated task, from another model
  python tools/stability_study.py --config configs/stability.yaml \\
    --task reasoning-gym:chain_sum --limit 200 \\
    --method "mirror_slow: diffusion.masking=mirror optimizer.lr=1e-3" \\
    --method "causal: diffusion.objective=ar diffusion.masking=bernoulli" \\
    --output runs/chain_sum model.path=path/to/model
"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="stability_study.py",
        description="Train methods under several seeds at a common budget, and say which of them are better.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML file of one run")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="values that override those of the file"
    )
    parser.add_argument(
        "--output", required=True, type=Path, metavar="DIR", help="folder for runs, report and figure"
    )
    _add_test(parser.add_argument_group("what is scored"))
    _add_methods(parser.add_argument_group("what is compared"))
    _add_running(parser.add_argument_group("running"))
    return parser


def _add_test(group: argparse._ArgumentGroup) -> None:
    tests = group.add_mutually_exclusive_group(required=True)
    tests.add_argument(
        "--test", type=Path, metavar="FILE", help="exact match on JSONL with prompt and response"
    )
    tests.add_argument(
        "--task", metavar="NAME", help="a task of `evaluate.py tasks --list`, or a YAML file of your own"
    )
    group.add_argument("--task-data", type=Path, metavar="FILE", help="the task's questions")
    group.add_argument("--tables", type=Path, metavar="DIR", help="hitab: the folder of the tables")
    group.add_argument("--limit", type=int, metavar="N", help="only the task's first N questions")
    group.add_argument("--preset", metavar="NAME", help="settings of sampling in place of the task's")
    group.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="OPTION=VALUE",
        help="an option of generate.py, such as length=64 or threshold=0.9",
    )
    group.add_argument(
        "--batch-size", type=int, default=64, metavar="N", help="texts sampled together (default: 64)"
    )


def _add_methods(group: argparse._ArgumentGroup) -> None:
    built_in = ",".join(method.name for method in BUILT_IN)
    group.add_argument(
        "--methods",
        type=lambda text: text.split(","),
        metavar="M,M",
        help=f"which (default: those of the file; with --method standard and those; else {built_in})",
    )
    group.add_argument(
        "--methods-file", type=Path, metavar="FILE", help="YAML: method names with section.key: value"
    )
    group.add_argument(
        "--method",
        action="append",
        default=[],
        metavar='"NAME: KEY=VALUE ..."',
        help="a method of your own; can be repeated",
    )
    group.add_argument(
        "--reference", metavar="NAME", help="what methods are compared with (default: standard, or the first)"
    )
    group.add_argument(
        "--budget", choices=get_args(Budget), default="equal-rows", help="see below (default: equal-rows)"
    )
    group.add_argument(
        "--control",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also train the reference with four times the batch (default: yes)",
    )
    group.add_argument(
        "--seeds",
        type=whole_numbers,
        default=[42, 731, 20231],
        metavar="N,N",
        help="default: 42,731,20231",
    )


def _add_running(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--jobs", type=int, metavar="N", help="runs at a time (default: as many as GPUs or cores allow)"
    )
    group.add_argument(
        "--ranks", type=int, default=1, metavar="N", help="processes of a run, with a GPU each (default: 1)"
    )


def whole_numbers(text: str) -> list[int]:
    """The numbers of a list such as 42,731."""
    try:
        return [int(seed) for seed in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: write whole numbers, such as 42,731") from None


def check_numbers(arguments: argparse.Namespace) -> None:
    """Refuse numbers out of range, and an output that is no folder.

    Raises:
        UserError: naming each.
    """
    problems = [
        f"--{name.replace('_', '-')} {value}: must be at least 1"
        for name in ("jobs", "ranks", "batch_size", "limit")
        if (value := getattr(arguments, name)) is not None and value < 1
    ]
    if any(seed < 0 for seed in arguments.seeds):
        problems.append(f"--seeds {','.join(map(str, arguments.seeds))}: seeds are not negative")
    if len(set(arguments.seeds)) < len(arguments.seeds):
        problems.append(f"--seeds {','.join(map(str, arguments.seeds))}: a seed is given twice")
    if arguments.output.exists() and not arguments.output.is_dir():
        problems.append(f"--output {arguments.output}: is a file; choose a folder")
    if problems:
        raise UserError(*problems)
