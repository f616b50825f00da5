"""Where a wrong value of a config comes from: the file, or an override on the command line."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Origin:
    """Where the values of a config come from.

    Attributes:
        source: name of the file.
        overrides: `section.key=value` that were applied after it, in order.
        in_file: dotted paths of the keys and sections that the file itself has.
    """

    source: str
    overrides: Sequence[str] = ()
    in_file: Collection[str] = field(default_factory=set)

    def of(self, details: Any, line: str) -> str:
        """The origin of one of pydantic's errors: an override, the file, or the file with overrides.

        A problem between several keys has no place of its own, but its `line` names the keys.
        """
        path = dotted(details["loc"])
        if details["type"] == "value_error":
            involved = [each for each in self.overrides if _names(line, _key_of(each), path)]
            return " ".join([self.source, *(["with", *involved] if involved else [])])
        for override in reversed(self.overrides):  # the last one wins
            key = _key_of(override)
            is_set = _contains(key, path)
            is_added = _contains(path, key) and path not in self.in_file
            if (is_set or is_added) and details["type"] != "missing":
                return f"override {override!r}"
        return self.source


def dotted_paths(values: dict[str, Any], prefix: str = "") -> set[str]:
    """The dotted paths of all keys and sections in `values`."""
    found = set()
    for name, value in values.items():
        found.add(f"{prefix}{name}")
        if isinstance(value, dict):
            found |= dotted_paths(value, f"{prefix}{name}.")
    return found


def dotted(location: Sequence[int | str]) -> str:
    """The dotted path of one of pydantic's locations, without the names of the types in a union."""
    return ".".join(str(part) for part in location if part not in ("str", "list[str]"))


def _key_of(override: str) -> str:
    return override.partition("=")[0]


def _contains(section: str, path: str) -> bool:
    """Whether `path` is `section` or is in it."""
    return f"{path}.".startswith(f"{section}.")


def _names(line: str, key: str, section: str) -> bool:
    """Whether a line about a section names a key of it, or by its dotted path any key."""
    words = re.findall(r"\w[\w.]*\w|\w", line)
    parent, _, name = key.rpartition(".")
    return key in words or (parent == section and name in words)
