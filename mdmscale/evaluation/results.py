"""results.json: what an evaluation measured, of which model, with which settings and versions.

    {"mdmscale": "0.1.0", "command": "tasks", "model": "runs/quickstart", "settings": {...},
     "versions": {...}, "summary": [{...}, ...], "items": [{...}, ...]}

`summary` has an entry for each table row. `items` has an entry for each text, question or choice, from which
`compare` takes paired differences between two models.
"""

import json
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mdmscale import __version__
from mdmscale.system.errors import UserError
from mdmscale.system.files import read_object

VERSIONED = ("torch", "transformers", "lm-eval", "reasoning-gym")


@dataclass(frozen=True)
class Results:
    """An evaluation's results. settings: all that decides them besides the model, as JSON values."""

    command: str
    model: str
    settings: dict[str, Any]
    summary: list[dict[str, Any]]
    items: list[dict[str, Any]]

    def lines(self) -> Iterator[str]:
        """The JSON of the results: indented, with one line for each item."""
        head = {
            "mdmscale": __version__,
            "command": self.command,
            "model": self.model,
            "settings": self.settings,
            "versions": versions(),
            "summary": self.summary,
        }
        yield json.dumps(head, indent=1, ensure_ascii=False).removesuffix("\n}")
        yield ',\n "items": [\n'
        for number, item in enumerate(self.items):
            comma = "," if number + 1 < len(self.items) else ""
            yield f"  {json.dumps(item, ensure_ascii=False)}{comma}\n"
        yield " ]\n}\n"


def read_results(path: Path) -> Results:
    """Read a results.json.

    Raises:
        UserError: where the file is missing, damaged or no results of an evaluation.
    """
    values = read_object(path)
    try:
        return Results(*(values[name] for name in ("command", "model", "settings", "summary", "items")))
    except KeyError as error:
        raise UserError(f"{path}: has no {error.args[0]!r}; give the --output of tools/evaluate.py") from None


def versions() -> dict[str, str]:
    """The versions of Python and of the libraries that decide results; those not installed are left out."""
    found = {"python": platform.python_version()}
    for name in VERSIONED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
