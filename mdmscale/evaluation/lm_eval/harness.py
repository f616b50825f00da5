"""Run tasks of lm-evaluation-harness on a model, and write their results."""

import argparse
import difflib
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from lm_eval.defaults import DEFAULT_OTHER_SEED
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager
from lm_eval.tasks.manager import TaskDict
from lm_eval.utils import make_table

from mdmscale.evaluation.lm_eval.answers import Answers
from mdmscale.evaluation.lm_eval.decoding import OPTIONS, PRESET
from mdmscale.evaluation.lm_eval.model import MDMLM
from mdmscale.evaluation.lm_eval.options import LIKELIHOOD_OPTIONS, split_options
from mdmscale.evaluation.lm_eval.quiet import quiet_harness
from mdmscale.evaluation.lm_eval.report import items, summary_rows
from mdmscale.evaluation.results import Results
from mdmscale.models.opening import ModelDescription, load_model
from mdmscale.parallel.work_group import WorkGroup
from mdmscale.system.errors import UserError, first_line
from mdmscale.system.notices import say
from mdmscale.system.partial_output import PartialOutput
from mdmscale.weights.fingerprint import weights_fingerprint

ASKED = ("tasks", "num_fewshot", "limit", "apply_chat_template", "system_instruction")


def run_tasks(arguments: argparse.Namespace, description: ModelDescription, group: WorkGroup) -> None:
    """Run the tasks that `arguments` names, print the table, and write --output. Ranks share the questions.

    Raises:
        UserError: where a task is unknown or cannot be loaded, or an option is wrong.
    """
    options = {
        name: value
        for name, value in vars(arguments).items()
        if name in OPTIONS | LIKELIHOOD_OPTIONS | {PRESET} and value is not None
    }
    split_options(options)
    with quiet_harness():
        tasks = load_tasks(arguments.tasks, arguments.include_path)
        partial = _begun(arguments, description, options, group)
        answers = Answers(partial)
        if answers.num_found and group.is_first:
            say(f"{arguments.output}: continuing with {answers.num_found} answers of the model")
        model = MDMLM(
            load_model(description, arguments.dtype),
            batch_size=arguments.batch_size,
            greedy=arguments.greedy,
            group=group,
            answers=answers,
            **options,
        )
        group.wait()  # all ranks have read the partial files before one appends to them
        found = _evaluated(arguments, tasks, model)
    if found is None:  # on ranks after the first
        return
    for section in ("results", "groups"):
        if found.get(section):
            print(make_table(found, section))
    if partial is not None:
        settings = {name: getattr(arguments, name) for name in ASKED} | model.settings()
        results = Results("lm-eval", arguments.path, settings, list(summary_rows(found)), list(items(found)))
        partial.publish(lambda _: results.lines())


def load_tasks(names: list[str], include_path: Path | None) -> TaskDict:
    """Tasks by name, or by the path of a YAML file, with their data.

    Raises:
        UserError: for unknown tasks, each with the nearest known name, and where one cannot be loaded.
    """
    manager = _manager(names, include_path)
    problems = []
    for name in names:
        if name in manager.all_tasks or Path(name).is_file():
            continue
        near = difflib.get_close_matches(name, manager.all_tasks, n=1)
        mend = f"did you mean {near[0]}?" if near else "`lm_eval ls tasks` lists them"
        problems.append(f"--tasks {name}: no such task of lm-evaluation-harness; {mend}")
    if problems:
        raise UserError(*problems)
    try:
        return manager.load(names)
    except Exception as error:  # of data sets, the hub, YAML or a task's own code
        raise UserError(f"--tasks {','.join(names)}: cannot be loaded: {first_line(error)}") from error


def _manager(names: list[str], include_path: Path | None) -> TaskManager:
    """Knows a folder's tasks, and the harness's own where they are needed: 13,000 files, read in seconds."""
    folder = None if include_path is None else str(include_path)
    own = TaskManager(include_path=folder, include_defaults=False)
    if all(name in own.all_subtasks or Path(name).is_file() for name in names):
        return own
    return TaskManager(include_path=folder)


def _begun(
    arguments: argparse.Namespace, description: ModelDescription, options: dict[str, Any], group: WorkGroup
) -> PartialOutput | None:
    """Where finished answers go, if there is an --output."""
    if arguments.output is None:
        return None
    recipe = {
        "model": arguments.path,
        "weights": weights_fingerprint(str(description.folder)),
        "dtype": arguments.dtype,
        **{name: getattr(arguments, name) for name in ASKED},
        **options,
    }
    partial = PartialOutput(arguments.output, recipe, group.rank)
    group.on_first_rank(lambda: partial.begin(arguments.overwrite))
    return partial


def _evaluated(arguments: argparse.Namespace, tasks: TaskDict, model: MDMLM) -> dict[str, Any] | None:
    """The harness's results, on the first rank. As its simple_evaluate does it, with the same seeds."""
    for task in tasks["tasks"].values():
        stated = task.get_config("num_fewshot")
        if arguments.num_fewshot is not None and stated != 0:  # 0 in a task's file says that it takes none
            task.set_config(key="num_fewshot", value=arguments.num_fewshot)
        elif stated is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
    with redirect_stdout(sys.stderr):  # it prints that it resamples
        return evaluate(
            lm=model,
            task_dict=tasks,
            limit=arguments.limit,
            system_instruction=arguments.system_instruction,
            apply_chat_template=arguments.apply_chat_template,
            fewshot_as_multiturn=arguments.apply_chat_template,
            confirm_run_unsafe_code=arguments.confirm_run_unsafe_code,
        )
