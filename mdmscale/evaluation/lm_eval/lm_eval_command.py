"""`evaluate lm-eval`: tasks of lm-evaluation-harness. Needs neither it nor torch for --help."""

import argparse
from pathlib import Path

from mdmscale.evaluation.likelihood.masks import SAMPLERS
from mdmscale.evaluation.likelihood.plan import METHODS, LikelihoodOptions
from mdmscale.evaluation.lm_eval.installed import check_installed
from mdmscale.evaluation.options import add_model_options
from mdmscale.generation.generate_command import add_sampling
from mdmscale.models.opening import ModelDescription
from mdmscale.parallel.work_group import WorkGroup
from mdmscale.system.errors import UserError

EXAMPLES = """\
examples:
  # multiple choice: 100 questions, log-likelihoods from 32 rows each
  python tools/evaluate.py lm-eval path/to/model --tasks arc_easy --limit 100 --rows 32

  # answers that the model writes, decoded as LLaDA decodes
  python tools/evaluate.py lm-eval path/to/model --tasks gsm8k --num-fewshot 4 --length 256 \\
      --block-length 32 --output gsm8k.json

  # a task of your own (a YAML file in a folder), in the chat template, on two devices
  torchrun --nproc-per-node 2 tools/evaluate.py lm-eval path/to/model --include-path my_tasks \\
      --tasks my_task --apply-chat-template --output my_task.json

Of decoding, what is not given is the task's: its max_gen_toks, temperature and so on. `lm_eval ls tasks`
lists the tasks. The harness's own command line works too:

  python -m mdmscale.evaluation.lm_eval --model mdmscale --model_args pretrained=path/to/model,rows=32 \\
      --tasks arc_easy
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the measure."""
    add_model_options(parser)
    _add_tasks(parser.add_argument_group("tasks"))
    _add_likelihood(parser.add_argument_group("log-likelihoods, of multiple choice and of whole texts"))
    add_sampling(parser.add_argument_group("decoding, of answers that the model writes"))


def _add_tasks(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--tasks",
        required=True,
        type=lambda text: [name for name in text.split(",") if name],
        metavar="NAME,...",
        help="tasks, groups or tags of the harness, or YAML files of tasks",
    )
    group.add_argument(
        "--include-path", type=Path, metavar="DIR", help="a folder with further tasks (YAML files)"
    )
    group.add_argument(
        "--num-fewshot", type=int, metavar="N", help="examples before each question (default: the task's)"
    )
    group.add_argument(
        "--limit",
        type=float,
        metavar="N",
        help="only the first N questions of each task; below 1, this share of them",
    )
    group.add_argument(
        "--apply-chat-template",
        action="store_true",
        help="put each question into the tokenizer's chat template, with its examples as earlier turns",
    )
    group.add_argument("--system-instruction", metavar="TEXT", help="a system message before each question")
    group.add_argument(
        "--confirm-run-unsafe-code",
        action="store_true",
        help="run tasks that execute the code which the model writes, such as humaneval",
    )


def _add_likelihood(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--method",
        choices=METHODS,
        help="the order of tokens: any order; left to right, one by one; or block by block "
        f"(default: {LikelihoodOptions.method})",
    )
    group.add_argument(
        "--estimator",
        choices=list(SAMPLERS),
        help=f"how masks are drawn (default: {LikelihoodOptions.estimator})",
    )
    group.add_argument(
        "--rows",
        type=int,
        metavar="N",
        help="masked copies of each continuation, or of each block of it: more are slower, with less noise "
        f"(default: {LikelihoodOptions.rows})",
    )
    group.add_argument(
        "--greedy",
        choices=("auto", "always", "never"),
        default="auto",
        help="find out whether greedy decoding gives a continuation: auto only where a question has one, as "
        "lambada's, as of several choices the likeliest counts (default: auto)",
    )


def run(arguments: argparse.Namespace, description: ModelDescription, group: WorkGroup) -> None:
    """Run the tasks, print the harness's table, and write results.json.

    Raises:
        UserError: where lm-eval is not installed, or a task or an option is wrong.
    """
    check_installed()
    problems = [
        f"--{name.replace('_', '-')} {value}: must be {bound} or more"
        for name, bound in (("num_fewshot", 0), ("limit", 0))
        if (value := getattr(arguments, name)) is not None and value < bound
    ]
    if arguments.include_path is not None and not arguments.include_path.is_dir():
        problems.append(f"--include-path {arguments.include_path}: no such folder")
    if not arguments.tasks:
        problems.append("--tasks: names no task")
    if problems:
        raise UserError(*problems)
    from mdmscale.evaluation.lm_eval.harness import run_tasks

    run_tasks(arguments, description, group)
