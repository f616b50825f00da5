"""Read a YAML file and `key=value` overrides into a RunConfig; report all problems by their dotted paths."""

import difflib
import re
from pathlib import Path
from typing import Any, NoReturn

import yaml
from pydantic import ValidationError

from mdmscale.config.keys import describe_keys
from mdmscale.config.origin import Origin, dotted, dotted_paths
from mdmscale.config.run import RunConfig
from mdmscale.system.errors import UserError
from mdmscale.system.run_folder import RunFolder

MOST_CHARACTERS = 2**20  # of a YAML text
MOST_VALUES = 10_000  # in it; an alias counts as often as what it stands for
_LONGEST_INTEGER = 100  # characters
MOST_LEVELS = 50  # of lists and sections in each other
MOST_PROBLEMS = 20  # that are reported at once
_LONGEST_SHOWN = 500  # characters of a value or key in a message


class _Loader(yaml.SafeLoader):
    """YAML in which `1e-4` is a number, only true and false are booleans, and duplicate keys are refused.

    So is what could not be read in seconds: deep nesting, and aliases of aliases, of which a few lines can
    stand for billions of values.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._num_levels = self._num_values = 0
        self._sizes: dict[str, int] = {}  # of what has an anchor, in values

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event, before = self.peek_event(), self._num_values
        is_alias = isinstance(event, yaml.AliasEvent)
        if is_alias and event.anchor in self.anchors and event.anchor not in self._sizes:
            self._refuse(event, f"the alias *{event.anchor} is part of what it stands for")
        self._num_values += self._sizes.get(event.anchor, 0) if is_alias else 1
        self._num_levels += 1
        if self._num_values > MOST_VALUES:
            self._refuse(event, f"more than {MOST_VALUES:,} values, aliases counted in full")
        if self._num_levels > MOST_LEVELS:
            self._refuse(event, f"more than {MOST_LEVELS} levels of nesting")
        node = super().compose_node(parent, index)
        self._num_levels -= 1
        if event.anchor is not None and not is_alias:
            self._sizes[event.anchor] = self._num_values - before
        return node

    def _refuse(self, event: Any, problem: str) -> NoReturn:
        raise yaml.composer.ComposerError(None, None, problem, event.start_mark)


class _Dumper(yaml.SafeDumper):
    """YAML that `_Loader` reads back: it quotes strings that `_Loader` takes for numbers, such as `1e-4`."""


_FLOAT, _BOOL, _TIMESTAMP = (f"tag:yaml.org,2002:{name}" for name in ("float", "bool", "timestamp"))
_FLOAT_PATTERN = re.compile(
    r"^[-+]?(\d[\d_]*\.?[\d_]*([eE][-+]?\d+)|\d[\d_]*\.[\d_]*|\.\d[\d_]*([eE][-+]?\d+)?|\.inf|\.nan)$"
)

_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in (_FLOAT, _BOOL, _TIMESTAMP)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOL, re.compile(r"^(true|false|True|False)$"), list("tTfF"))
_Loader.add_implicit_resolver(_FLOAT, _FLOAT_PATTERN, list("-+0123456789."))
_Dumper.add_implicit_resolver(_FLOAT, _FLOAT_PATTERN, list("-+0123456789."))


def _mapping_without_duplicates(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[str] = set()
    for key_node, _ in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            continue  # construct_mapping refuses it
        if key_node.value in seen:
            problem = f"duplicate key {key_node.value!r}"
            raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
        seen.add(key_node.value)
    return loader.construct_mapping(node, deep=True)


def _short_integer(loader: _Loader, node: yaml.ScalarNode) -> int:
    """An integer. The time for it grows with the square of its length."""
    if len(node.value) > _LONGEST_INTEGER:
        problem = f"an integer of {len(node.value):,} characters"
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
    return loader.construct_yaml_int(node)


_Loader.add_constructor("tag:yaml.org,2002:int", _short_integer)
_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping_without_duplicates)


def load_config(path: str | Path, overrides: list[str] | None = None) -> RunConfig:
    """Read `path`, apply `section.key=value` overrides and validate.

    Raises:
        UserError: one line for each problem, with its dotted path.
    """
    values = _read_yaml(Path(path))
    origin = Origin(str(path), overrides or [], dotted_paths(values))
    for override in origin.overrides:
        _apply_override(values, override)
    return validate(values, origin)


def validate(values: dict[str, Any], origin: Origin) -> RunConfig:
    """Check `values` against RunConfig. Errors say which of the values' origins they are about."""
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        described = error.errors()[:MOST_PROBLEMS]
        problems = [
            f"{origin.of(details, line)}: {line}" for details in described for line in _describe(details)
        ]
        if more := error.error_count() - len(described):
            problems.append(f"{origin.source}: {more} more problems")
        raise UserError(*dict.fromkeys(problems)) from None


def dump_config(config: RunConfig) -> str:
    """The resolved config as YAML that `load_config` reads back to an equal RunConfig."""
    return yaml.dump(config.model_dump(), Dumper=_Dumper, sort_keys=False, width=120)


def parse_yaml(text: str, where: str) -> Any:
    """The values of a YAML text, in which `1e-4` is a number and no key is given twice.

    Raises:
        UserError: naming `where`, and the line.
    """
    if len(text) > MOST_CHARACTERS:
        raise UserError(f"{where}: has more than {MOST_CHARACTERS:,} characters")
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a tag and a value that do not fit
        raise UserError(f"{where}: {_yaml_problem(error)}") from None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"--config {path}: no such file") from None
    except IsADirectoryError:
        raise UserError(f"--config {path}: is a folder; {_config_in(path)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path}: cannot be read: {error}") from None
    values = parse_yaml(text, str(path))
    if not isinstance(values, dict):
        raise UserError(
            f"{path}: expected sections with keys (run:, model:, ...), found {type(values).__name__}"
        )
    return values


def _config_in(folder: Path) -> str:
    """What to give instead of a folder: a run folder has the config of its run."""
    inside = RunFolder(folder).config
    return f"give {inside} to repeat that run" if inside.is_file() else "give a YAML file"


def _yaml_problem(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return f"not YAML: {' '.join(str(error).split())}"


def _apply_override(values: dict[str, Any], override: str) -> None:
    path, separator, text = override.partition("=")
    if not separator or not path:
        raise UserError(f"override {override!r}: write section.key=value, such as train.steps=100")
    value = parse_yaml(text, f"override {override!r}") if text else ""
    *parents, name = path.split(".")
    section: Any = values
    for parent in parents:
        if section.get(parent) is None:  # absent, or a section that the file turns off with null
            section[parent] = {}
        section = section[parent]
        if not isinstance(section, dict):
            raise UserError(f"override {override!r}: {parent} is a value, not a section")
    section[name] = value


def _describe(details: Any) -> list[str]:
    """Lines for one pydantic error: dotted path, what is wrong, and the remedy where it is known."""
    location, path = [str(part) for part in details["loc"]], dotted(details["loc"])
    match details["type"]:
        case "extra_forbidden":
            return [f"{path}: unknown key{_suggestion(location)}"]
        case "model_type":
            return [f"{path} = {_shown(details['input'])}: expected a section with keys under it"]
        case "missing":
            return [f"{path}: required, but not given"]
        case "value_error":
            prefix = f"{path}: " if path else ""
            return [prefix + line for line in str(details["ctx"]["error"]).split("\n")]
        case _:
            message = details["msg"][0].lower() + details["msg"][1:]
            return [f"{path} = {_shown(details['input'])}: {message}"]


def _shown(value: Any) -> str:
    """A value as messages show it, on one line that is not endless."""
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def _suggestion(location: list[str]) -> str:
    """The known key that the user may mean: the same name in another section, else the most similar name."""
    keys = [key.name for key in describe_keys()]
    sections = dict.fromkeys(dotted.rpartition(".")[0] for dotted in keys)
    known = [*sections, *keys]
    parent, name = ".".join(location[:-1]), location[-1]
    siblings = [dotted for dotted in known if dotted.rpartition(".")[0] == parent]
    close = _named(name, known) or _nearest(name, siblings) or _nearest(name, known)
    return f"; did you mean {close[0]}?" if close else "; see --keys for the known ones"


def _named(name: str, dotted_keys: list[str]) -> list[str]:
    return [dotted for dotted in dotted_keys if dotted.rpartition(".")[2] == name]


def _nearest(name: str, dotted_keys: list[str]) -> list[str]:
    """Keys whose last part is most similar to `name`. Similar section names would not mean anything."""
    names = [dotted.rpartition(".")[2] for dotted in dotted_keys]
    return [
        dotted
        for close in difflib.get_close_matches(name, names, n=1)
        for dotted in _named(close, dotted_keys)
    ]
