"""`evaluate tasks`: answer the questions of tasks, and score the answers."""

import argparse
import sys
from pathlib import Path
from typing import Any

from mdmscale.evaluation.options import add_model_options
from mdmscale.evaluation.tasks.catalogue import list_tasks
from mdmscale.models.opening import ModelDescription
from mdmscale.parallel.work_group import WorkGroup

EXAMPLES = """\
examples:
  # all tasks: those shipped, and those that reasoning-gym generates
  python tools/evaluate.py tasks --list

  # 100 generated sums; no download
  python tools/evaluate.py tasks runs/quickstart --task reasoning-gym:chain_sum --limit 100

  # the first 100 problems of a local copy of GSM8K's test set, with all answers in results.json
  python tools/evaluate.py tasks path/to/model --task gsm8k --data test.jsonl --limit 100 \\
      --output results.json

  # accuracy against forwards: three settings, their curve and its area (AUP)
  python tools/evaluate.py tasks path/to/model --task gsm8k --data test.jsonl --set steps=32,64,128

  # a task of your own, on two devices; after an interruption the same command continues
  torchrun --nproc-per-node 2 tools/evaluate.py tasks path/to/model --task mine.yaml --output results.json

A prompt goes through the tokenizer's chat template if there is one. Responses are sampled with the task's own
settings, unless --preset or --set changes them.
"""


class _List(argparse.Action):
    """--list prints the tasks and ends the command, as --help does."""

    def __init__(self, option_strings: list[str], dest: str, **keywords: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, **keywords)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        tasks = list_tasks()
        width = max(len(name) for name, _ in tasks)
        print("\n".join(f"{name:{width}}  {about}" for name, about in tasks))
        if not any(name.startswith("reasoning-gym:") for name, _ in tasks):
            print("and about 100 of reasoning-gym: pip install 'mdmscale[tasks]'")
        sys.exit(0)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this measure."""
    group = parser.add_argument_group("what to answer")
    group.add_argument(
        "--task",
        action="append",
        required=True,
        metavar="NAME",
        help="a shipped task, reasoning-gym:NAME, or a YAML file of your own; can be repeated",
    )
    group.add_argument("--list", action=_List, help="list the tasks, and end")
    group.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="[TASK=]FILE",
        help="the questions (JSONL, JSON, parquet, CSV; default: the task's); TASK= where several need some",
    )
    group.add_argument("--tables", type=Path, metavar="DIR", help="hitab: the folder of the tables")
    group.add_argument("--limit", type=int, metavar="N", help="answer only the first N questions")
    how = parser.add_argument_group("how to sample")
    how.add_argument("--preset", metavar="NAME", help="settings of a published model, in place of the task's")
    how.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="OPTION=VALUE",
        help="an option of generate.py, such as length=64 or threshold=0.9; steps=32,64,128 makes a curve",
    )
    how.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the samples (default: 0)")
    add_model_options(parser)


def run(arguments: argparse.Namespace, description: ModelDescription, group: WorkGroup) -> None:
    """Answer, score, and show the table.

    Raises:
        UserError: where a task, its data, an option or the model does not fit.
    """
    from mdmscale.evaluation.tasks.work import TaskWork
    from mdmscale.evaluation.tasks.writing import write_results

    # One rank reads the questions: a hub would not like to be asked by each.
    write_results(group.on_first_rank(lambda: TaskWork.plan(arguments, description)), group)
