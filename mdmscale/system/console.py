"""Tables of numbers and progress bars on the console."""

import sys
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from rich.progress import Progress

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


def work_progress(title: str, total: int, completed: int = 0, *, shown: bool) -> "Progress":
    """A bar of work to do, the progress's only task. It is on stderr, if that is a terminal and `shown`."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    progress = Progress(
        *columns, console=console, transient=True, disable=not (shown and console.is_terminal)
    )
    progress.add_task(title, total=total, completed=completed)
    return progress
