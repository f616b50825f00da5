"""A file that appears only when it is complete. An interrupted command continues from partial files.

Every rank appends its finished items to its own file, `<output>.partial-<rank>`. The first line of that file
holds the recipe: all that decides the items. A command with another recipe refuses to continue. At the end
rank 0 merges these files into the output.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from mdmscale.system.disk import disk_errors
from mdmscale.system.errors import UserError
from mdmscale.system.files import cut_torn_line, written_file

Place = tuple[int, ...]
"""Where an item comes in the output. Of a sample: the number of its source, and its own of that source."""


class PartialOutput:
    """The finished items of `output`, and a file to which this rank appends further ones."""

    def __init__(self, output: Path, recipe: dict[str, Any], rank: int = 0) -> None:
        self.output = output
        self.recipe = recipe
        self.file = output.with_name(f"{output.name}.partial-{rank}")

    def begin(self, overwrite: bool) -> None:
        """Check that the output may be written, before anything slow. Only rank 0 may call it.

        Raises:
            UserError: where it exists already, or was begun with another recipe.
        """
        if overwrite:
            for file in (*self._partial_files(), self.output):
                file.unlink(missing_ok=True)
        if self.output.exists():
            raise UserError(f"--output {self.output}: exists already; choose another, or give --overwrite")
        if not self.output.parent.is_dir():
            raise UserError(f"--output {self.output}: there is no folder {self.output.parent}; make it first")
        for file in self._partial_files():
            self._check_recipe(file)

    def finished(self) -> dict[Place, dict[str, Any]]:
        """The finished output lines of all ranks' files."""
        return {
            tuple(line["place"]): line["values"]
            for file in self._partial_files()
            for line in _lines(file)[1:]
        }

    def append(self, lines: dict[Place, dict[str, Any]]) -> None:
        """Write finished lines to disk, so that they survive whatever happens to the process.

        Raises:
            UserError: if the disk is full or fails.
        """
        cut_torn_line(self.file)
        is_new = not self.file.exists() or not self.file.stat().st_size
        with disk_errors(self.file), self.file.open("a", encoding="utf-8") as file:
            if is_new:
                file.write(_dump({"recipe": self.recipe}))
            for key, values in lines.items():
                file.write(_dump({"place": key, "values": values}))

    def publish(self, render: Callable[[list[dict[str, Any]]], Iterable[str]] | None = None) -> int:
        """Write the output from all ranks' items, in order, and remove the partial files.

        Args:
            render: the output's lines from the values of all items; None writes each item's as a JSON line.

        Returns:
            the number of items.
        """
        finished = self.finished()
        values = [finished[place] for place in sorted(finished)]
        with written_file(self.output) as unfinished, unfinished.open("w", encoding="utf-8") as file:
            file.writelines(map(_dump, values) if render is None else render(values))
        for partial in self._partial_files():
            partial.unlink()
        return len(finished)

    def _partial_files(self) -> list[Path]:
        return sorted(self.output.parent.glob(f"{_literal(self.output.name)}.partial-*"))

    def _check_recipe(self, file: Path) -> None:
        lines = _lines(file)
        begun = lines[0].get("recipe", {}) if lines else self.recipe
        differing = [
            f"{name} = {begun.get(name)!r}, now {value!r}"
            for name, value in self.recipe.items()
            if begun.get(name) != value
        ]
        if differing:
            raise UserError(
                f"{file}: was begun with {'; '.join(differing)}; give the same again, or --overwrite"
            )


def _lines(file: Path) -> list[dict[str, Any]]:
    """The complete lines of a partial file."""
    lines = []
    with file.open(encoding="utf-8", errors="replace") as stream:
        for line in stream:
            if line.endswith("\n"):
                try:
                    lines.append(json.loads(line))
                except ValueError:
                    raise UserError(f"{file}: is damaged; remove it, or give --overwrite") from None
    return lines


def _dump(values: dict[str, Any]) -> str:
    return json.dumps(values, ensure_ascii=False) + "\n"


def _literal(name: str) -> str:
    """A glob pattern that matches only this name."""
    return "".join(f"[{char}]" if char in "*?[" else char for char in name)
