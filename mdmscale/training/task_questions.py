"""The questions of `eval.tasks`: read when a run starts, and the same at every step. Needs no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mdmscale.config.run import RunConfig
from mdmscale.config.training import EvalSection
from mdmscale.evaluation.tasks.catalogue import load_task
from mdmscale.evaluation.tasks.task import Item, Task
from mdmscale.generation.options import GenerationOptions
from mdmscale.models.hub import UnreachableError
from mdmscale.system.errors import UserError

if TYPE_CHECKING:
    from mdmscale.models.backbone import Backbone
    from mdmscale.models.opening import LoadedModel


@dataclass(frozen=True)
class Questions:
    """A task's questions, and how the answers are sampled."""

    task: Task
    items: list[Item]
    options: GenerationOptions

    @property
    def label(self) -> str:
        """The task's name as metrics have it."""
        return label_of(self.task)


def label_of(task: Task) -> str:
    """A task's name as metrics have it."""
    return task.name.replace(":", "_")


def accuracy_metric(name: str) -> str:
    """The metric with the share of right answers to a task of eval.tasks."""
    return f"task_{label_of(opened_task(name))}_accuracy"


def asks_every(options: EvalSection) -> int:
    """Steps between answers to tasks; 0: never."""
    return (options.tasks_every or options.every) if options.tasks else 0


def check_questions(config: RunConfig) -> None:
    """Refuse tasks that do not exist, and questions that are missing or wrong; those of the hub come later.

    Raises:
        UserError: with every problem.
    """
    problems: list[str] = []
    for name in config.eval.tasks:
        try:
            if name in config.eval.task_data or opened_task(name).file.data.hub is None:
                task_questions(config, name)
        except UserError as error:
            problems += error.problems
    labels = [name.rpartition("/")[2] for name in config.eval.tasks]
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        problems.append(f"eval.tasks: {', '.join(twice)} is named twice, which metrics could not tell apart")
    if problems:
        raise UserError(*problems)


def opened_task(name: str) -> Task:
    """A task of eval.tasks.

    Raises:
        UserError: where it is unknown or wrong.
    """
    try:
        return load_task(name)
    except UserError as error:
        raise UserError(*(f"eval.tasks: {problem}" for problem in error.problems)) from None


def task_questions(config: RunConfig, name: str) -> Questions:
    """The first questions of a task.

    Raises:
        UserError: naming eval.tasks, where the task, its data or a record is wrong.
    """
    options = config.eval
    file, task = options.task_data.get(name), opened_task(name)
    try:
        items = task.items(None if file is None else Path(file), options.task_items)
    except UserError as error:
        kind = UnreachableError if isinstance(error, UnreachableError) else UserError
        mend = f"; in a run, --data is eval.task_data.{name}"
        problems = [
            f"eval.tasks: {problem}{mend if '--data' in problem else ''}" for problem in error.problems
        ]
        raise kind(*problems) from None
    # Cached keys and values are those of a Hugging Face model, which a model in training is not.
    decoding = {key: value for key, value in task.file.decoding.items() if key != "cache"}
    return Questions(task, items, GenerationOptions(**decoding))


def prepare_questions(config: RunConfig, backbone: "Backbone") -> list[Questions]:
    """The questions of all tasks, of which each fits the model.

    Raises:
        UserError: naming those that do not.
    """
    if not config.eval.tasks:
        return []
    from mdmscale.evaluation.tasks.running import encode_items

    loaded, found, problems = described(backbone, backbone.model), [], []
    for name in config.eval.tasks:
        try:
            questions = task_questions(config, name)
            encode_items(loaded, questions.task, questions.items, questions.options.length)
            found.append(questions)
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(*problems)
    return found


def described(backbone: "Backbone", model: object) -> "LoadedModel":
    """`model`, which computes what `backbone` does, as sampling takes it."""
    import torch

    from mdmscale.models.opening import LoadedModel, ModelDescription
    from mdmscale.models.token_ids import TokenIds

    config = backbone.model.config
    eos = config.eos_token_id
    ids = TokenIds(tuple(eos if isinstance(eos, list) else [] if eos is None else [eos]))
    description = ModelDescription(
        folder=Path(config.name_or_path or "."),
        mask_token_id=backbone.mask_token_id,
        logit_shift=backbone.logit_shift,
        vocab_size=config.vocab_size,
        max_length=config.max_position_embeddings,
        stated_ids=ids,
    )
    device = getattr(model, "device", torch.device("cpu"))
    return LoadedModel(description, model, backbone.tokenizer, device)  # type: ignore[arg-type]
