"""Every config key with its default, its values and its meaning, read from the fields of the sections."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from mdmscale.config.run import RunConfig
from mdmscale.config.section import CHOICES

TYPE_NAMES = {bool: "true or false", int: "integer", float: "number", str: "text", type(None): "null"}
BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
LARGEST_SHOWN = 10**6  # larger bounds only say that a number fits its type


@dataclass(frozen=True)
class KeyDescription:
    """One config key.

    name: its dotted path. default: as in YAML, None for a required key. values: the choices of an
    enumeration, or the type with its bounds. meaning: what the key does.
    """

    name: str
    default: str | None
    values: str
    meaning: str


def describe_keys(config: type[BaseModel] = RunConfig) -> list[KeyDescription]:
    """All keys of `config` and of the sections in it, in order."""
    return list(_walk(config, ""))


def _walk(config: type[BaseModel], prefix: str) -> Iterator[KeyDescription]:
    for name, field in config.model_fields.items():
        section = _section_of(field.annotation)
        if section is None or field.default is None:
            values = "section or null" if section is not None else _values_of(field)
            yield KeyDescription(f"{prefix}{name}", _default_of(field), values, field.description or "")
        if section is not None:
            yield from _walk(section, f"{prefix}{name}.")


def _section_of(annotation: Any) -> type[BaseModel] | None:
    """The section class of a field that holds one, or one or null."""
    for choice in (annotation, *get_args(annotation)):
        if isinstance(choice, type) and issubclass(choice, BaseModel):
            return choice
    return None


def _default_of(field: FieldInfo) -> str | None:
    if field.is_required():
        return None
    return yaml.safe_dump(field.default, default_flow_style=True).removesuffix("...\n").strip()


def _values_of(field: FieldInfo) -> str:
    extra = field.json_schema_extra
    if isinstance(extra, dict) and CHOICES in extra:
        return " | ".join(map(str, extra[CHOICES]))  # type: ignore[arg-type]
    return _values(field.annotation, field.metadata)


def _values(annotation: Any, metadata: list[Any]) -> str:
    """The values that a type accepts: `cosine | wsd`, `integer >= 1`, `list of text, or null`."""
    arguments = get_args(annotation)
    if hasattr(annotation, "__metadata__"):  # Annotated[type, bounds, ...]
        inside = [each for every in annotation.__metadata__ for each in getattr(every, "metadata", [every])]
        return _values(arguments[0], [*inside, *metadata])
    if get_origin(annotation) is Literal:
        return " | ".join(map(str, arguments))
    if get_origin(annotation) is list:
        return f"list of {_values(arguments[0], []).replace(', or ', ' or ')}"
    if get_origin(annotation) is dict:
        return f"{_values(arguments[1], [])} by name"
    if arguments:  # a union; its bounds are those of its numbers
        return ", or ".join(_values(each, metadata) for each in arguments)
    return TYPE_NAMES[annotation] + (_bounds(metadata) if annotation in (int, float) else "")


def _bounds(metadata: list[Any]) -> str:
    found = [
        f" {sign} {bound}"
        for each in metadata
        for attribute, sign in BOUNDS.items()
        if (bound := getattr(each, attribute, None)) is not None and bound <= LARGEST_SHOWN
    ]
    return " and".join(found)
