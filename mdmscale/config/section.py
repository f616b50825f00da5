"""What every section of the configuration is made of: strict keys with a default, a meaning and bounds."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

CHOICES = "choices"  # under this name a field's json_schema_extra lists the names it accepts


def key(default: Any, description: str, *, choices: Iterable[str] | None = None, **constraints: Any) -> Any:
    """A config key: its default (`...` for a required key), its meaning, and its bounds.

    Args:
        choices: the names that a `str` key accepts, where a validator checks it against the keys of a dict.
            They are listed by --keys. A `Literal` key lists its own choices.
    """
    if choices is not None:
        constraints["json_schema_extra"] = {CHOICES: list(choices)}
    return Field(default, description=description, **constraints)


def _dtype_name(value: Any) -> Any:
    return {"float32": "fp32", "bfloat16": "bf16"}.get(value, value) if isinstance(value, str) else value


DType = Annotated[Literal["fp32", "bf16"], BeforeValidator(_dtype_name)]


def _recomputation(value: Any) -> Any:
    return {True: "full", False: "none"}[value] if isinstance(value, bool) else value


Recomputation = Annotated[Literal["none", "selective", "full"], BeforeValidator(_recomputation)]


HeadKind = Literal["auto", "chunked", "fused"]


class Section(BaseModel):
    """A strict group of keys: no unknown key, no silent conversion of types.

    There is one exception: a key of type integer takes whole numbers that are written as floats, because
    people write 1e3 steps and YAML reads 1e3 as a float.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _whole_floats_are_integers(cls, value: Any, info: ValidationInfo) -> Any:
        assert info.field_name is not None
        types = _types_in(cls.model_fields[info.field_name].annotation)
        return _as_integers(value) if int in types and float not in types else value


def _types_in(annotation: Any) -> set[Any]:
    """The types that an annotation is made of: those of `list[int] | None` are list, int and None's."""
    return {annotation}.union(*map(_types_in, get_args(annotation)))


def _as_integers(value: Any) -> Any:
    if isinstance(value, list):
        return [_as_integers(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
