"""HiTab's tables as HTML. A file holds {"title", "texts": rows of cells, "merged_regions": [...]}."""

from html import escape
from pathlib import Path
from typing import Any

from mdmscale.system.errors import UserError
from mdmscale.system.files import read_object


def read_table(folder: Path, table_id: Any) -> str:
    """The table of an id as HTML that ends with a newline.

    Raises:
        UserError: where the file is missing, or is no table.
    """
    path = folder / f"{table_id}.json"
    if not path.is_file():
        raise UserError(f"--tables {folder}: has no {path.name}; give the folder with HiTab's raw tables")
    values = read_object(path)
    rows = values.get("texts")
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise UserError(f"{path}: has no 'texts' (the rows of the table)")
    regions = values.get("merged_regions", [])
    return table_html(rows, regions if isinstance(regions, list) else [], str(values.get("title", "")))


def table_html(rows: list[list[Any]], merged: list[dict[str, int]], title: str = "") -> str:
    """A table as HTML: cells that are merged into another are left out, and that one spans them."""
    spans, hidden = {}, set()
    for region in merged:
        first, last = (
            (region["first_row"], region["first_column"]),
            (region["last_row"], region["last_column"]),
        )
        inside = {
            (row, column) for row in range(first[0], last[0] + 1) for column in range(first[1], last[1] + 1)
        }
        hidden |= inside - {first}
        spans[first] = (last[0] - first[0] + 1, last[1] - first[1] + 1)
    lines = [
        "<tr>"
        + "".join(
            f"<td{_span(*spans.get((at, column), (1, 1)))}>{escape(str(cell), quote=False)}</td>"
            for column, cell in enumerate(row)
            if (at, column) not in hidden
        )
        + "</tr>"
        for at, row in enumerate(rows)
    ]
    caption = f"<caption>{escape(title, quote=False)}</caption>" if title else ""
    return f"<table>{caption}{''.join(lines)}</table>\n"


def _span(num_rows: int, num_columns: int) -> str:
    rows = f" rowspan={num_rows}" if num_rows > 1 else ""
    return rows + (f" colspan={num_columns}" if num_columns > 1 else "")
