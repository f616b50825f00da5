"""How a task's responses are sampled: its own settings, a preset's, and those that the user gives.

`--set steps=32,64,128` makes three settings; several lists make every combination. Their results are the
points of one curve: accuracy against forwards.
"""

from dataclasses import dataclass
from itertools import product
from typing import Any

from mdmscale.config.loading import parse_yaml
from mdmscale.evaluation.tasks.task import Task
from mdmscale.evaluation.tasks.task_file import DECODING, no_such
from mdmscale.generation.options import GenerationOptions
from mdmscale.generation.presets import PRESETS, without_replaced
from mdmscale.system.errors import UserError


@dataclass(frozen=True)
class Setting:
    """Options of sampling, and what sets them apart from the others of the command: "steps=32", or ""."""

    label: str
    options: GenerationOptions


def parse_settings(given: list[str]) -> dict[str, list[Any]]:
    """The values of each option in `name=value,value,...`.

    Raises:
        UserError: for options that do not exist.
    """
    values, problems = {}, []
    for each in given:
        name, separator, text = each.partition("=")
        if not separator or not text:
            problems.append(f"--set {each}: write name=value, such as steps=64 or steps=32,64,128")
        elif name not in DECODING:
            problems.append(f"--set {each}: {no_such('option', name, DECODING)}")
        elif name in values:
            problems.append(f"--set {each}: {name} is given twice; write {name}=value,value")
        else:
            values[name] = [parse_yaml(part, f"--set {each}") for part in text.split(",")]
    if problems:
        raise UserError(*problems)
    return values


def preset_of(name: str | None) -> dict[str, Any] | None:
    """What a preset sets; None without one.

    Raises:
        UserError: for an unknown preset.
    """
    if name is None:
        return None
    if name not in PRESETS:
        raise UserError(f"--preset {name}: {no_such('preset', name, PRESETS)}")
    return PRESETS[name]


def settings_of(
    task: Task, given: dict[str, list[Any]], preset: dict[str, Any] | None = None, seed: int = 0
) -> list[Setting]:
    """Every combination of the given values, over the preset's or else the task's own settings.

    Raises:
        UserError: for each combination that does not go together.
    """
    base, settings, problems = task.file.decoding if preset is None else preset, [], []
    varied = [name for name, values in given.items() if len(values) > 1]
    for values in product(*given.values()):
        chosen = dict(zip(given, values, strict=True))
        label = " ".join(f"{name}={chosen[name]}" for name in varied)
        try:
            options = GenerationOptions(**fitted(base, chosen), seed=seed)
            settings.append(Setting(label, options))
        except UserError as error:
            problems += [f"task {task.name}: {label or '--set'}: {problem}" for problem in error.problems]
    if problems:
        raise UserError(*problems)
    return settings


def fitted(base: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """`base` with the given options in it. Steps that are not given keep their share of the length."""
    kept = without_replaced(base, given)
    if isinstance(kept.get("steps"), int) and isinstance(given.get("length"), int) and "steps" not in given:
        full = kept.get("length", GenerationOptions.length)
        kept["steps"] = max(1, kept["steps"] * given["length"] // full)
    return {**kept, **given}
