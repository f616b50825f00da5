"""The progress of a list of requests."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress


def make_progress(title: str, total: int, *, shown: bool) -> "Progress":
    """A bar on stderr if that is a terminal, which goes when it is full."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    progress = Progress(
        *columns, console=console, transient=True, disable=not (shown and console.is_terminal)
    )
    progress.add_task(title, total=total)
    return progress
