"""How the runs of a study are scored: every question of a test with 1 for a right answer and 0 otherwise."""

import argparse
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from mdmscale.data.preparation.jsonl import read_jsonl
from mdmscale.evaluation.tasks.catalogue import load_task
from mdmscale.evaluation.tasks.settings import parse_settings, preset_of, settings_of
from mdmscale.evaluation.tasks.task import Item, Task
from mdmscale.generation.options import GenerationOptions
from mdmscale.system.digest import digest
from mdmscale.system.errors import UserError


class Scorer(Protocol):
    """What scores the model of a run."""

    @property
    def what(self) -> str:
        """What is measured, for tables and figures."""
        ...

    @property
    def identity(self) -> dict[str, Any]:
        """All that decides the scores besides the model, as JSON values."""
        ...

    def __call__(self, model: Path) -> list[float]:
        """The score of each question, in the order of the test."""
        ...


def make_scorer(arguments: argparse.Namespace, fill_multiple: int) -> Scorer:
    """The scorer that a study's options ask for, with its questions read.

    Raises:
        UserError: for a task, a file or options that cannot be used.
    """
    if arguments.test is not None:
        for_tasks = ("task_data", "tables", "preset", "set", "limit")
        if given := [name for name in for_tasks if getattr(arguments, name) not in (None, [])]:
            raise UserError(f"--{given[0].replace('_', '-')}: goes with --task, not with --test")
        return ExactMatch(tuple(read_tests(arguments.test)), fill_multiple, arguments.batch_size)
    task = load_task(arguments.task, arguments.tables)
    settings = _decoding(task, arguments.preset, arguments.set)
    items = task.items(arguments.task_data, arguments.limit)
    return TaskScore(task, tuple(items), settings, arguments.batch_size)


@dataclass(frozen=True)
class TaskScore:
    """Accuracy on a task of `mdmscale evaluate tasks`, with its own settings of sampling or others."""

    task: Task
    items: tuple[Item, ...]
    options: GenerationOptions
    batch_size: int

    @property
    def what(self) -> str:
        return f"accuracy on {self.task.name}"

    @property
    def identity(self) -> dict[str, Any]:
        questions = [[item.prompt, item.plain_prompt, item.expected] for item in self.items]
        return {
            "task": self.task.name,
            "file": digest(self.task.file.model_dump(mode="json")),
            "questions": digest(questions),
            "options": asdict(self.options),
        }

    def __call__(self, model: Path) -> list[float]:
        from mdmscale.evaluation.tasks.running import answer_items
        from mdmscale.generation import load_model

        answered = answer_items(load_model(model), self.task, self.items, self.options, self.batch_size)
        return [float(each.judged.score.correct) for each in answered]


@dataclass(frozen=True)
class ExactMatch:
    """Whether the response is exactly the expected one. One token a step, greedily.

    A response has room for the longest answer and its EOS, rounded up as training filled samples with EOS
    (data.fill_multiple), because a small model has seen no other lengths.
    """

    tests: tuple[tuple[str, str], ...]  # prompt and response
    fill_multiple: int
    batch_size: int

    @property
    def what(self) -> str:
        return "exact match on the test set"

    @property
    def identity(self) -> dict[str, Any]:
        return {"test": digest(self.tests)}

    def __call__(self, model: Path) -> list[float]:
        from mdmscale.generation import encode_prompt, generate, load_model

        loaded = load_model(model)
        encode: Callable[..., list[int]] = loaded.tokenizer.encode
        longest = max(len(encode(answer, add_special_tokens=False)) for _, answer in self.tests)
        multiple = max(1, self.fill_multiple)
        requests = []
        for prompt, _ in self.tests:
            width = encode_prompt(loaded, prompt, 1).prompt_length or 0
            length = -(-(width + longest + 1) // multiple) * multiple - width
            requests.append(encode_prompt(loaded, prompt, length))
        generations = generate(loaded, requests, batch_size=self.batch_size)
        answered = zip(self.tests, generations, strict=True)
        return [float(each.text == answer) for (_, answer), each in answered]


def read_tests(path: Path) -> list[tuple[str, str]]:
    """(prompt, response) of every line.

    Raises:
        UserError: names the line that is invalid.
    """
    tests = []
    for record in read_jsonl(path):
        prompt, response = record.values.get("prompt"), record.values.get("response")
        if not isinstance(prompt, str) or not isinstance(response, str):
            raise UserError(f'--test {record.where}: is no {{"prompt": "...", "response": "..."}}')
        tests.append((prompt, response))
    if not tests:
        raise UserError(f"--test {path}: is empty")
    return tests


def _decoding(task: Task, preset: str | None, given: list[str]) -> GenerationOptions:
    """The task's own settings of sampling, or a preset's, with those that the user gives."""
    settings = settings_of(task, parse_settings(given), preset_of(preset))
    if len(settings) > 1:
        raise UserError(f"--set {' '.join(given)}: a study has one setting; give one value of each option")
    return settings[0].options
