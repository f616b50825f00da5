"""JSONL output that is whole or absent; finished texts lie beside it, for an interrupted command to go on.

Every rank appends to a file of its own, `<output>.partial-<rank>`. Its first line says what the texts follow
from; with anything else the command refuses to go on. At the end rank 0 makes the output of all such files.
"""

import json
from pathlib import Path
from typing import Any

from mdmscale.system.errors import UserError
from mdmscale.system.files import cut_torn_line, written_file

Place = tuple[int, int]
"""The number of a source, and of its sample."""


class PartialOutput:
    """The texts of `output` that are finished already, and a file for this rank's next ones."""

    def __init__(self, output: Path, recipe: dict[str, Any], rank: int = 0) -> None:
        self.output = output
        self.recipe = recipe
        self.file = output.with_name(f"{output.name}.partial-{rank}")

    def begin(self, overwrite: bool) -> None:
        """Look whether the output may be made, before anything slow; rank 0 alone may call it.

        Raises:
            UserError: if it is there already, or was begun with another recipe.
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
        """The output lines that are finished, by place, of all ranks' files."""
        return {
            tuple(line["place"]): line["values"]
            for file in self._partial_files()
            for line in _lines(file)[1:]
        }

    def append(self, lines: dict[Place, dict[str, Any]]) -> None:
        """Keep finished lines; they survive whatever happens next to the process."""
        cut_torn_line(self.file)
        is_new = not self.file.exists() or not self.file.stat().st_size
        with self.file.open("a", encoding="utf-8") as file:
            if is_new:
                file.write(_dump({"recipe": self.recipe}))
            for place, values in lines.items():
                file.write(_dump({"place": place, "values": values}))

    def publish(self) -> int:
        """Make the output of all ranks' lines, in order. Returns how many; the partial files go."""
        finished = self.finished()
        with written_file(self.output) as unfinished, unfinished.open("w", encoding="utf-8") as file:
            file.writelines(_dump(finished[place]) for place in sorted(finished))
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
    """The whole lines of a partial file."""
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
    """A name as a glob pattern that matches it alone."""
    return "".join(f"[{char}]" if char in "*?[" else char for char in name)
