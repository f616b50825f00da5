"""The methods that a study compares: each a name, and the config keys that it changes.

Some are built in. A methods file or `--method` names any others:

    mirror_slow:                     # in a file
      diffusion.masking: mirror
      optimizer.lr: 1e-5

    --method "mirror_slow: diffusion.masking=mirror optimizer.lr=1e-5"
"""

import difflib
import json
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mdmscale.config.loading import parse_yaml
from mdmscale.system.errors import UserError

NAME = re.compile(r"^\w[\w.+-]*$")
CONTROL = "control"


@dataclass(frozen=True)
class Method:
    """A method: `overrides` are `section.key=value`, as on the command line of a run."""

    name: str
    overrides: tuple[str, ...]

    @property
    def run_name(self) -> str:
        """The name in those of its runs, which have no plus."""
        return self.name.replace("+", "-")


def _of(name: str, t_sampler: str, masking: str, *others: str) -> Method:
    return Method(name, (f"diffusion.t_sampler={t_sampler}", f"diffusion.masking={masking}", *others))


BUILT_IN = (
    _of("standard", "uniform", "bernoulli"),
    _of("clipped", "uniform", "bernoulli", "diffusion.loss_weight=window"),
    _of("p_pots", "p_pots", "bernoulli"),
    _of("mirror", "uniform", "mirror"),
    _of("p_pots+mirror", "p_pots", "mirror"),
)


def read_methods(path: Path) -> list[Method]:
    """The methods of a YAML file: name -> {section.key: value}.

    Raises:
        UserError: naming each entry that is no method.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--methods-file {path}: cannot be read: {error}") from None
    values = parse_yaml(text, f"--methods-file {path}")
    if not isinstance(values, dict) or not values:
        raise UserError(f"--methods-file {path}: expected method names with section.key: value under each")
    methods, problems = [], []
    for name, keys in values.items():
        keys = {} if keys is None else keys
        if not isinstance(keys, dict) or not all(isinstance(key, str) and "." in key for key in keys):
            problems.append(f"--methods-file {path}: {name}: expected section.key: value under it")
            continue
        # JSON is YAML, of which an override's value is read
        overrides = tuple(f"{key}={json.dumps(value)}" for key, value in keys.items())
        methods.append(Method(str(name), overrides))
    if problems:
        raise UserError(*problems)
    return methods


def parse_method(text: str) -> Method:
    """The method of `--method "NAME: section.key=value ..."`.

    Raises:
        UserError: where it is not written so.
    """
    name, separator, rest = text.partition(":")
    try:
        overrides = tuple(shlex.split(rest))
    except ValueError as error:
        raise UserError(f"--method {text!r}: {error}") from None
    if not separator or not all("=" in override for override in overrides):
        raise UserError(f'--method {text!r}: write "NAME: section.key=value section.key=value"')
    return Method(name.strip(), overrides)


def choose_methods(known: Iterable[Method], names: list[str] | None) -> list[Method]:
    """The methods that a study compares: those named, in that order, or all.

    Raises:
        UserError: for an unknown name, a bad one, and two methods of one name.
    """
    known = list(known)
    problems = [
        f"method {method.name!r}: choose a name of letters, digits and . + - _"
        for method in known
        if not NAME.match(method.name)
    ]
    by_run_name: dict[str, Method] = {}
    for method in known:
        if method.run_name == CONTROL:
            problems.append(f"method {method.name!r}: is the name of the control; choose another")
        elif (other := by_run_name.setdefault(method.run_name, method)) is not method:
            problems.append(
                f"method {method.name!r}: {other.name!r} has runs of the same name; choose another"
            )
    by_name = {method.name: method for method in known}
    names = list(by_name) if names is None else list(dict.fromkeys(names))
    problems += [
        f"--methods {name}: {_no_such(name, list(by_name))}" for name in names if name not in by_name
    ]
    if problems:
        raise UserError(*problems)
    return [by_name[name] for name in names]


def _no_such(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{hint}choose from {', '.join(known)}"
