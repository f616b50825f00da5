"""Run tasks of lm-evaluation-harness on a model, and write their results."""

import argparse
import difflib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from lm_eval.utils import make_table

from mdmscale.evaluation.lm_eval.answers import Answers
from mdmscale.evaluation.lm_eval.model import LIKELIHOOD_OPTIONS, MDMLM, split_options
from mdmscale.evaluation.lm_eval.decoding import OPTIONS
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
        if name in OPTIONS | LIKELIHOOD_OPTIONS and value is not None
    }
    split_options(options)
    with quiet_harness():
        tasks = TaskManager(include_path=arguments.include_path and str(arguments.include_path))
        check_tasks(tasks, arguments.tasks)
        partial = _begun(arguments, description, options, group)
        model = MDMLM(
            load_model(description, arguments.dtype),
            batch_size=arguments.batch_size,
            greedy=arguments.greedy,
            group=group,
            answers=Answers(partial),
            **options,
        )
        group.wait()  # all ranks have read the partial files before one appends to them
        found = _evaluated(arguments, tasks, model)
    if group.is_first:
        assert found is not None
        print(make_table(found))
        if found.get("groups"):
            print(make_table(found, "groups"))
        if partial is not None:
            settings = {name: getattr(arguments, name) for name in ASKED} | model.settings()
            results = Results(
                "lm-eval", arguments.path, settings, list(summary_rows(found)), list(items(found))
            )
            partial.publish(lambda _: results.lines())


def check_tasks(tasks: TaskManager, names: list[str]) -> None:
    """Refuse unknown tasks before anything slow.

    Raises:
        UserError: naming each, with the nearest known name.
    """
    problems = []
    for name in names:
        if name in tasks.all_tasks or name.endswith((".yaml", ".yml")):
            continue
        near = difflib.get_close_matches(name, tasks.all_tasks, n=1)
        mend = f"did you mean {near[0]}?" if near else "`lm_eval ls tasks` lists them"
        problems.append(f"--tasks {name}: no such task of lm-evaluation-harness; {mend}")
    if problems:
        raise UserError(*problems)


@contextmanager
def quiet_harness() -> Iterator[None]:
    """Show the harness's warnings as notices, once each, and nothing else that it logs."""
    from datasets.utils.logging import disable_progress_bar
    from transformers.utils import logging as transformers_logging

    disable_progress_bar()
    transformers_logging.disable_progress_bar()
    logger = logging.getLogger("lm_eval")
    before = logger.handlers, logger.propagate, logger.level
    logger.handlers, logger.propagate = [_Notices()], False
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.handlers, logger.propagate = before[:2]
        logger.setLevel(before[2])


class _Notices(logging.Handler):
    """Says each warning once."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = " ".join(record.getMessage().split())
        if text not in self._said:
            self._said.add(text)
            say(f"lm-eval: {text}")


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


def _evaluated(arguments: argparse.Namespace, tasks: TaskManager, model: MDMLM) -> dict[str, Any] | None:
    """The harness's results, on the first rank."""
    try:
        tasks.load(arguments.tasks)
    except Exception as error:  # of data sets, the hub, YAML or a task's own code
        raise UserError(
            f"--tasks {','.join(arguments.tasks)}: cannot be loaded: {first_line(error)}"
        ) from error
    return simple_evaluate(
        model=model,
        tasks=arguments.tasks,
        task_manager=tasks,
        batch_size=model.batch_size,
        num_fewshot=arguments.num_fewshot,
        limit=arguments.limit,
        apply_chat_template=arguments.apply_chat_template,
        system_instruction=arguments.system_instruction,
        confirm_run_unsafe_code=arguments.confirm_run_unsafe_code,
    )
