"""The work of `evaluate tasks`: which questions under which settings, shared out among ranks, resumable."""

import argparse
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mdmscale.evaluation.results import Results
from mdmscale.evaluation.tasks.catalogue import GENERATED, load_task
from mdmscale.evaluation.tasks.running import answer_items, encode_items
from mdmscale.evaluation.tasks.settings import Setting, parse_settings, preset_of, settings_of
from mdmscale.evaluation.tasks.summary import summarise, with_aup
from mdmscale.evaluation.tasks.task import Item, Task
from mdmscale.generation.left_to_right import check_options, left_to_right
from mdmscale.generation.sampler import batches
from mdmscale.models.opening import LoadedModel, ModelDescription, load_quietly
from mdmscale.system.digest import digest
from mdmscale.system.errors import UserError
from mdmscale.system.partial_output import Place
from mdmscale.weights.fingerprint import weights_fingerprint


@dataclass(frozen=True)
class Job:
    """A task's questions under one setting."""

    task: Task
    items: list[Item]
    setting: Setting


@dataclass(frozen=True)
class TaskWork:
    """All that one command answers."""

    model: str
    description: ModelDescription
    jobs: list[Job]
    batch_size: int
    dtype: str | None
    output: Path | None
    overwrite: bool

    @classmethod
    def plan(cls, arguments: argparse.Namespace, description: ModelDescription) -> "TaskWork":
        """Read the tasks and their questions, before the model is loaded.

        Raises:
            UserError: where a task, its data or an option is wrong.
        """
        if arguments.limit is not None and arguments.limit < 1:
            raise UserError(f"--limit {arguments.limit}: must be at least 1")
        given, preset = parse_settings(arguments.set), preset_of(arguments.preset)
        jobs: list[Job] = []
        names = list(dict.fromkeys(arguments.task))
        files = data_files(arguments.data, names)
        check_names(names)
        for name in names:
            task = load_task(name, arguments.tables)
            base = left_to_right(description, task.file.decoding if preset is None else preset)
            settings = settings_of(task, given, base, arguments.seed)
            for setting in settings:
                check_options(description, setting.options)
            items = task.items(files[name], arguments.limit)
            jobs += [Job(task, items, setting) for setting in settings]
        return cls(
            str(arguments.path),
            description,
            jobs,
            arguments.batch_size,
            arguments.dtype,
            arguments.output,
            arguments.overwrite,
        )

    def settings(self) -> dict[str, Any]:
        """All that decides the results besides the model, for results.json: what is asked, and how.

        Results of the same questions may be compared whatever their decoding, as those of an autoregressive
        and a diffusion model must be.
        """
        tasks = {job.task.name: job for job in self.jobs}
        return {
            "dtype": self.dtype,
            "tasks": {
                name: {
                    **job.task.file.model_dump(mode="json", exclude={"decoding"}),
                    "num_items": len(job.items),
                }
                for name, job in tasks.items()
            },
            "decoding": [
                {"task": job.task.name, "setting": job.setting.label, **_options(job)} for job in self.jobs
            ],
        }

    def recipe(self) -> dict[str, Any]:
        """All that decides the items. Half-written results are continued only with the same recipe."""
        items = [
            [item.id, item.prompt, item.plain_prompt, item.expected]
            for job in self.jobs
            for item in job.items
        ]
        return {
            "model": self.model,
            "weights": weights_fingerprint(str(self.description.folder)),
            "dtype": self.dtype,
            "tasks": list(dict.fromkeys(job.task.name for job in self.jobs)),
            "settings": [[job.setting.label, _options(job)] for job in self.jobs],
            "items": digest(items),
            "task_files": digest([job.task.file.model_dump(mode="json") for job in self.jobs]),
        }

    def places(self) -> list[Place]:
        """Every question of every job, as (job, item)."""
        return [(number, item) for number, job in enumerate(self.jobs) for item in range(len(job.items))]

    def load(self) -> LoadedModel:
        """Load the model, and check that every prompt fits it.

        Raises:
            UserError: naming the items that do not.
        """
        loaded = load_quietly(self.description, self.dtype)
        problems: list[str] = []
        for job in self.jobs:
            try:
                encode_items(loaded, job.task, job.items, job.setting.options.length)
            except UserError as error:
                problems += error.problems
        if problems:
            raise UserError(*dict.fromkeys(problems))
        return loaded

    def answer(self, loaded: LoadedModel, share: list[Place]) -> Iterator[dict[Place, dict[str, Any]]]:
        """Answer a share of the questions; yields the records of each finished batch."""
        for number, job in enumerate(self.jobs):
            mine = [place for place in share if place[0] == number]
            for members in batches(mine, self.batch_size):
                items = [job.items[place[1]] for place in members]
                answered = answer_items(loaded, job.task, items, job.setting.options, self.batch_size)
                yield {
                    place: each.record(job.task, job.setting.label)
                    for place, each in zip(members, answered, strict=True)
                }

    def results(self, items: list[dict[str, Any]]) -> Results:
        """The results, from the records of all items."""
        summary = [
            summarise(
                job.task.name,
                job.setting.label,
                [
                    item
                    for item in items
                    if (item["task"], item["setting"]) == (job.task.name, job.setting.label)
                ],
            )
            for job in self.jobs
        ]
        return Results("tasks", self.model, self.settings(), with_aup(summary), items)


def check_names(tasks: list[str]) -> None:
    """Refuse two files of the same name: results could not tell which is which.

    Raises:
        UserError: naming them.
    """
    by_name: dict[str, str] = {}
    for task in tasks:
        name = Path(task).stem if task.endswith((".yaml", ".yml")) else task
        if name in by_name:
            raise UserError(f"--task {by_name[name]} and --task {task}: have the same name; rename a file")
        by_name[name] = task


def data_files(given: list[str], tasks: list[str]) -> dict[str, Path | None]:
    """The file of each task, from `FILE` for the only task with one, or `TASK=FILE` for each.

    Raises:
        UserError: where that is not clear.
    """
    files: dict[str, Path | None] = dict.fromkeys(tasks)
    for each in given:
        name, separator, file = each.partition("=")
        if not separator or name not in tasks:
            readers = [task for task in tasks if not task.startswith(GENERATED)]
            if len(readers) != 1:
                raise UserError(f"--data {each}: say for which task: --data TASK={each}")
            name, file = readers[0], each
        if files[name] is not None:
            raise UserError(f"--data {each}: task {name} has one already")
        files[name] = Path(file)
    return files


def _options(job: Job) -> dict[str, Any]:
    options = asdict(job.setting.options)
    del options["padding"]  # it changes no token
    return options
