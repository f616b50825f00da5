"""What every section of the configuration is made of: strict keys with a default, a meaning and bounds."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def key(default: Any, description: str, *, choices: Iterable[str] | None = None, **constraints: Any) -> Any:
    """A config key: its default (`...` when it must be given), what it means, and its bounds.

    choices: the names that a validator allows, for --keys; a Literal shows its own.
    """
    extra: Any = None if choices is None else {"choices": list(choices)}
    return Field(default, description=description, json_schema_extra=extra, **constraints)


def _dtype_name(value: Any) -> Any:
    return {"float32": "fp32", "bfloat16": "bf16"}.get(value, value) if isinstance(value, str) else value


DType = Annotated[Literal["fp32", "bf16"], BeforeValidator(_dtype_name)]


def _recomputation(value: Any) -> Any:
    return {True: "full", False: "none"}[value] if isinstance(value, bool) else value


Recomputation = Annotated[Literal["none", "selective", "full"], BeforeValidator(_recomputation)]


HeadKind = Literal["auto", "chunked", "fused"]


class Section(BaseModel):
    """A strict group of keys: no unknown key, no silent conversion of types."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
