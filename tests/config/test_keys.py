"""The key list of --keys: defaults, choices of every enumeration, types and bounds."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel, Field

from mdmscale.config.keys import KeyDescription, describe_keys
from mdmscale.config.run import RunConfig
from mdmscale.config.section import Section, key


class Inner(Section):
    named: str = key("one", "checked against a dict elsewhere", choices=["one", "two"])
    by_schema: str = key("b", "the same, written out", json_schema_extra={"choices": ["a", "b"]})


class Outer(Section):
    several: list[Literal["x", "y"]] = key(["x"], "a list")
    optional: Literal["p", "q"] | None = key(None, "or null")
    both: list[Annotated[Literal["m", "n"], Field()]] | None = key(None, "a list or null")
    count: int | None = key(None, "a bounded number", ge=2, lt=2**63)
    share: float = key(..., "a bounded number", gt=0, le=1)
    mixed: list[int | str] = key([], "numbers or names")
    inner: Inner = key(Inner(), "a section")
    other: Inner | None = key(None, "a section that may be missing")


@pytest.fixture(scope="module")
def outer() -> dict[str, KeyDescription]:
    return {each.name: each for each in describe_keys(Outer)}


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("several", "list of x | y"),
        ("optional", "p | q, or null"),
        ("both", "list of m | n, or null"),
        ("count", "integer >= 2, or null"),
        ("share", "number > 0 and <= 1"),
        ("mixed", "list of integer or text"),
        ("inner.named", "one | two"),
        ("inner.by_schema", "a | b"),
        ("other", "section or null"),
        ("other.named", "one | two"),
    ],
)
def test_values_are_described(outer: dict[str, KeyDescription], name: str, values: str) -> None:
    assert outer[name].values == values


def test_defaults_are_yaml(outer: dict[str, KeyDescription]) -> None:
    assert outer["share"].default is None, "required"
    assert (outer["several"].default, outer["count"].default) == ("[x]", "null")
    assert "inner" not in outer, "a section that always exists is described by its keys"


def literals(annotation: Any) -> Iterator[Any]:
    """The choices of each Literal in a type."""
    if get_origin(annotation) is Literal:
        yield from get_args(annotation)
        return
    for argument in get_args(annotation):
        yield from literals(argument)


def enumerations(config: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, list[Any]]]:
    for name, field in config.model_fields.items():
        if choices := [*literals(field.annotation)]:
            yield f"{prefix}{name}", choices
        for inner in (field.annotation, *get_args(field.annotation)):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from enumerations(inner, f"{prefix}{name}.")


def test_every_enumeration_of_a_run_lists_its_choices() -> None:
    described = {each.name: each.values for each in describe_keys()}
    found = dict(enumerations(RunConfig))
    assert {"model.dtype", "data.kind", "parallel.offload_optimizer", "diffusion.p_pots.fit"} <= found.keys()
    for name, choices in found.items():
        assert " | ".join(map(str, choices)) in described[name], name
    assert described["diffusion.masking"].startswith("bernoulli | independent | mirror | complement")


def test_every_key_of_a_run_is_described() -> None:
    described = {each.name: each for each in describe_keys()}
    assert described["run.name"].default is None
    assert described["diffusion.p_pots.probe_steps"].default == "[0]"
    assert described["model.path"].default == "null"
    assert all(each.meaning and each.values for each in described.values())
    assert {name.partition(".")[0] for name in described} == RunConfig.model_fields.keys()
