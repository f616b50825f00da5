"""The work of `evaluate tasks`: which questions under which settings, shared out among ranks, resumable."""

import argparse
import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from mdmscale.evaluation.results import Results
from mdmscale.evaluation.tasks.catalogue import GENERATED, load_task
from mdmscale.evaluation.tasks.running import answer_items, encode_items
from mdmscale.evaluation.tasks.settings import Setting, parse_settings, preset_of, settings_of
from mdmscale.evaluation.tasks.summary import summarise, with_aup
from mdmscale.evaluation.tasks.task import Item, Task
from mdmscale.generation.left_to_right import check_options, left_to_right
from mdmscale.generation.sampler import batches
from mdmscale.models.opening import LoadedModel, ModelDescription, load_model
from mdmscale.parallel.work_group import WorkGroup
from mdmscale.system.console import make_console, plain_table
from mdmscale.system.errors import UserError
from mdmscale.system.partial_output import PartialOutput, Place
from mdmscale.weights.fingerprint import weights_fingerprint

if TYPE_CHECKING:
    from rich.progress import Progress


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
        """All that decides the results besides the model, for results.json."""
        return {
            "dtype": self.dtype,
            "tasks": [
                {
                    "task": job.task.name,
                    "setting": job.setting.label,
                    "num_items": len(job.items),
                    "file": job.task.file.model_dump(mode="json"),
                    "options": _options(job),
                }
                for job in self.jobs
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
            "items": _digest(items),
            "task_files": _digest([job.task.file.model_dump(mode="json") for job in self.jobs]),
        }

    def places(self) -> list[Place]:
        """Every question of every job, as (job, item)."""
        return [(number, item) for number, job in enumerate(self.jobs) for item in range(len(job.items))]

    def load(self) -> LoadedModel:
        """Load the model, and check that every prompt fits it.

        Raises:
            UserError: naming the items that do not.
        """
        from transformers.utils import logging

        logging.disable_progress_bar()
        loaded = load_model(self.description, self.dtype)
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


def write_results(work: TaskWork, group: WorkGroup) -> None:
    """Answer this rank's share of what the output still lacks; rank 0 writes it and shows the table.

    Raises:
        UserError: where a prompt does not fit the model, or the output exists or is another command's.
    """
    with TemporaryDirectory() as folder:
        output = Path(folder) / "results.json" if work.output is None else work.output
        partial = PartialOutput(output, group.on_first_rank(work.recipe), group.rank)
        group.on_first_rank(lambda: partial.begin(work.overwrite))
        loaded = work.load()
        finished = partial.finished()
        group.wait()  # all ranks must have read the files before one appends to them
        todo = [place for place in work.places() if place not in finished]
        todo.sort(
            key=lambda place: (place[0], _size(work, place), place)
        )  # keeps padding small, shares equal
        with _progress(len(work.places()), len(finished), shown=group.is_first) as bar:
            for records in work.answer(loaded, todo[group.rank :: group.world_size]):
                partial.append(records)
                bar.advance(bar.task_ids[0], len(records) * group.world_size)
        group.wait()
        if group.is_first:
            items = [partial.finished()[place] for place in work.places()]
            results = work.results(items)
            partial.publish(lambda _: results.lines())
            show(results)
            if work.output is not None:
                print(f"{work.output}: {len(items)} answers")


def show(results: Results) -> None:
    """The summary as a table."""
    console = make_console()
    headings = [
        "task",
        "setting",
        "items",
        "accuracy",
        "95% interval",
        "no answer",
        "forwards",
        "tokens/fwd",
    ]
    has_points = any(entry["score"] != entry["accuracy"] for entry in results.summary)
    table = plain_table(results.model, [*headings, *(["score"] if has_points else []), "seconds"])
    for entry in results.summary:
        table.add_row(
            entry["task"],
            entry["setting"] or "-",
            str(entry["num_items"]),
            f"{entry['accuracy']:.1%}",
            f"{100 * entry['low']:.1f} to {100 * entry['high']:.1f}%",
            f"{entry['no_answer']:.1%}",
            f"{entry['forwards_per_text']:.1f}",
            f"{entry['tokens_per_forward']:.2f}",
            *([f"{entry['score']:.1%}"] if has_points else []),
            f"{entry['seconds']:.1f}",
        )
    console.print(table)
    for task in dict.fromkeys(entry["task"] for entry in results.summary if "aup" in entry):
        area = next(entry["aup"] for entry in results.summary if entry["task"] == task)
        console.print(f"{task}: area under accuracy against tokens a forward (AUP) {area:.1f}")


def _options(job: Job) -> dict[str, Any]:
    options = asdict(job.setting.options)
    del options["padding"]  # it changes no token
    return options


def _size(work: TaskWork, place: Place) -> int:
    """A stand-in for the number of tokens of a question."""
    return len(work.jobs[place[0]].items[place[1]].plain_prompt)


def _digest(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=8).hexdigest()


def _progress(total: int, completed: int, *, shown: bool) -> "Progress":
    """A progress bar of answers, on stderr if that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=True, disable=not (shown and console.is_terminal))
    bar.add_task("answering", total=total, completed=completed)
    return bar
