"""Tables of numbers on the console."""

import sys

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

WIDTH_OF_FILES = 110


def make_console() -> Console:
    """A console as wide as the terminal. If output goes to a file, it is wide enough for every column."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH_OF_FILES)


def plain_table(title: str, headings: list[str]) -> Table:
    """An empty, compact table for numbers."""
    table = Table(
        title=title,
        title_justify="left",
        box=SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
        show_edge=False,
    )
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table
