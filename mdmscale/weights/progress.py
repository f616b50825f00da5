"""A progress bar for a conversion, in bytes, on stderr."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mdmscale.weights.tensor_source import TensorSource


@contextmanager
def weights_progress(source: TensorSource, title: str) -> Iterator[Callable[[int], None]]:
    """Yields a function to call with the number of bytes of each tensor that was read."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn(title),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=sum(info.num_bytes for info in source.tensors().values()))
        yield lambda num_bytes: progress.advance(task, num_bytes)
