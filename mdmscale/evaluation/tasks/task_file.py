"""A task as its YAML file says: strict keys, checked before anything is opened. All problems come at once."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, ValidationError, field_validator, model_validator

from mdmscale.config.loading import parse_yaml
from mdmscale.config.section import Section, key
from mdmscale.evaluation.tasks.extraction import EXTRACTORS, NEED_TEXT
from mdmscale.evaluation.tasks.scoring import SCORERS
from mdmscale.evaluation.tasks.templates import FILTERS, filters_of
from mdmscale.generation.options import GenerationOptions
from mdmscale.system.errors import UserError

OWN_SCORE = "reasoning_gym"  # the score that a generated task brings along
DECODING = [field.name for field in fields(GenerationOptions) if field.name not in ("seed", "padding")]


@dataclass(frozen=True)
class Named:
    """A function by name, with its argument: `boxed`, or `{number_after: "####"}`."""

    name: str
    argument: Any = None


class Rows(Section):
    split: str = key(..., "split of the hub's dataset")
    rows: list[int] | None = key(None, "first row, and the one after the last; null: all")

    @model_validator(mode="after")
    def _has_rows(self) -> Self:
        if self.rows is not None and (len(self.rows) != 2 or not 0 <= self.rows[0] < self.rows[1]):
            raise ValueError(f"rows = {self.rows}: write [first, end], such as [0, 5000]")
        return self


class TaskData(Section):
    hub: str | None = key(None, "dataset of the Hugging Face hub (owner/name)")
    config: str | None = key(None, "the dataset's config")
    train: Rows | None = key(None, "where the training records are")
    test: Rows | None = key(None, "where the questions are")
    file: str | None = key(None, "a local file of questions (JSONL, JSON, parquet, CSV); --data replaces it")
    reasoning_gym: str | None = key(None, "a task of reasoning-gym, which generates its questions")
    options: dict[str, Any] = key({}, "options of the reasoning-gym task")
    table: str | None = key(None, "field with the id of a table; --tables DIR then gives {table} as HTML")


class AnswerSection(Section):
    field: str = key(..., "field of the record that holds the expected answer")
    extract: Any = key(None, "how the answer is found in that field; null: it is the field's value")

    @field_validator("extract")
    @classmethod
    def _extractors(cls, value: Any) -> list[Named]:
        return [] if value is None else extractors(value)


class TaskFile(Section):
    """The keys of a task file."""

    about: str = key("", "what the task asks, in one line")
    data: TaskData = TaskData()
    prompt: str = key(..., "template of the user's message, such as '{question}'")
    plain_prompt: str | None = key(None, "template for models without a chat template; null: as `prompt`")
    response: str | None = key(None, "template of the response that is trained, such as '{answer}'")
    chat: Literal["auto", "always", "never"] = key(
        "auto", "whether prompts go through the chat template; auto: if the tokenizer has one"
    )
    decoding: dict[str, Any] = key({}, "options of sampling, as tools/generate.py names them")
    answer: AnswerSection = key(..., "where the expected answer is")
    extract: Any = key(..., "how the answer is found in a response; of a list, the first that finds one")
    score: Any = key("exact", "how the two are compared")

    @field_validator("decoding")
    @classmethod
    def _is_decoding(cls, value: dict[str, Any]) -> dict[str, Any]:
        unknown = [name for name in value if name not in DECODING]
        if unknown:
            raise ValueError("\n".join(no_such("option", name, DECODING) for name in unknown))
        GenerationOptions(**value)
        return value

    @field_validator("extract")
    @classmethod
    def _extractors(cls, value: Any) -> list[Named]:
        return extractors(value)

    @field_validator("score")
    @classmethod
    def _scorer(cls, value: Any) -> Named:
        named = _named(value, {"tolerance"})
        if named.name not in (*SCORERS, OWN_SCORE):
            raise ValueError(no_such("score", named.name, [*SCORERS, OWN_SCORE]))
        tolerance = (named.argument or {}).get("tolerance", 0.0)
        if isinstance(tolerance, bool) or not isinstance(tolerance, int | float) or tolerance < 0:
            raise ValueError(f"tolerance = {tolerance!r}: must be a number of at least 0")
        return Named(named.name, float(tolerance))

    @field_validator("prompt", "plain_prompt", "response")
    @classmethod
    def _filters_exist(cls, value: str | None) -> str | None:
        for name in filters_of(value or ""):
            if name not in FILTERS:
                raise ValueError(no_such("filter", name, list(FILTERS)))
        return value

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        data = self.data
        sources = [name for name in ("hub", "file", "reasoning_gym") if getattr(data, name)]
        if len(sources) > 1:
            raise ValueError(f"data has {' and '.join(sources)}; give one of them")
        if data.hub and data.test is None:
            raise ValueError("data.hub is set, but data.test does not say which split has the questions")
        if (self.score.name == OWN_SCORE) != bool(data.reasoning_gym):
            raise ValueError(f"score: {OWN_SCORE} goes with data.reasoning_gym, and that with no other score")
        return self


def read_task_file(path: Path, text: str | None = None) -> TaskFile:
    """Read and check a task file; `text` is its content where that is known.

    Raises:
        UserError: one line for each problem, with its dotted path.
    """
    if text is None:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--task {path}: cannot be read: {error}") from None
    values = parse_yaml(text, str(path))
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected keys (prompt:, answer:, ...), found {type(values).__name__}")
    try:
        return TaskFile.model_validate(values)
    except ValidationError as error:
        lines = [f"{path}: {line}" for details in error.errors() for line in _describe(details)]
        raise UserError(*dict.fromkeys(lines)) from None


def extractors(value: Any) -> list[Named]:
    """The extractors that a key names: one, or a list of them.

    Raises:
        ValueError: where one is unknown, or lacks its argument.
    """
    found = [_named(each) for each in (value if isinstance(value, list) else [value])]
    for named in found:
        if named.name not in EXTRACTORS:
            raise ValueError(no_such("extractor", named.name, list(EXTRACTORS)))
        needs = NEED_TEXT.get(named.name)
        if needs and not (isinstance(named.argument, str) and named.argument):
            raise ValueError(f"{named.name} needs a {needs}: write {{{named.name}: ...}}")
        if not needs and named.argument is not None:
            raise ValueError(f"{named.name} takes no argument, but has {named.argument!r}")
    return found


def no_such(kind: str, name: str, known: Iterable[str], also: Iterable[str] = ()) -> str:
    """The words for an unknown name: the nearest known one, or all of them.

    Args:
        also: further known names, too many to list.
    """
    close = difflib.get_close_matches(name, [*known, *also], n=1)
    mend = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(known)}"
    return f"there is no {kind} {name!r}; {mend}"


def _named(value: Any, options: set[str] | None = None) -> Named:
    match value:
        case str():
            return Named(value)
        case dict() if len(value) == 1 and isinstance(name := next(iter(value)), str):
            argument = value[name]
            if options is not None and not (isinstance(argument, dict) and set(argument) <= options):
                raise ValueError(f"{name}: write {{{name}: {{{', '.join(sorted(options))}: ...}}}}")
            return Named(name, argument)
    raise ValueError(f"{value!r}: write a name, or {{name: argument}}")


def _describe(details: Any) -> list[str]:
    """Lines for one pydantic error."""
    location = [str(part) for part in details["loc"]]
    path = ".".join(location)
    match details["type"]:
        case "extra_forbidden":
            known = _known(location[:-1])
            close = difflib.get_close_matches(location[-1], known, n=1)
            mend = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
            return [f"{path}: unknown key; {mend}"]
        case "missing":
            return [f"{path}: required, but not given"]
        case "value_error":
            error = details["ctx"]["error"]
            return [f"{path}: {line}".removeprefix(": ") for line in str(error).split("\n")]
        case "model_type":
            return [f"{path} = {details['input']!r}: expected keys under it"]
        case _:
            return [f"{path} = {details['input']!r}: {details['msg'][0].lower()}{details['msg'][1:]}"]


def _known(location: list[str]) -> list[str]:
    """The keys of the section at `location`."""
    section: type[BaseModel] = TaskFile
    for part in location:
        annotation = section.model_fields[part].annotation
        section = next(
            each
            for each in (annotation, *get_args(annotation))
            if isinstance(each, type) and issubclass(each, BaseModel)
        )
    return list(section.model_fields)
