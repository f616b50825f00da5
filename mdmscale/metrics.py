"""What a run writes down and shows: metrics.jsonl, TensorBoard, and the line that a person watches."""

import json
import math
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class MetricsWriter:
    """metrics.jsonl, with a line for every step, and TensorBoard's event files. Used on rank 0 only.

    On resume the lines after the resumed step are dropped, so that the file reads as one uninterrupted run.
    """

    def __init__(self, folder: Path, first_step: int, tensorboard: bool) -> None:
        self.path = folder / "metrics.jsonl"
        _drop_lines_after(self.path, first_step)
        self.file = self.path.open("a")
        self.board = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1)

    def write(self, record: dict[str, Any]) -> None:
        """Add the record of one step; its `step` counts the steps taken, from 1."""
        self.file.write(json.dumps(record) + "\n")
        if self.board is not None:
            for name, value in record.items():
                if name != "step":
                    self.board.add_scalar(name, value, record["step"])

    def figure(self, name: str, figure: Any, step: int) -> None:
        """Show a matplotlib figure in TensorBoard."""
        if self.board is not None:
            self.board.add_figure(name, figure, step)

    def flush(self) -> None:
        self.file.flush()
        if self.board is not None:
            self.board.flush()

    def close(self) -> None:
        self.flush()
        self.file.close()
        if self.board is not None:
            self.board.close()


class ProgressLine:
    """What a person sees while training: a live line on a terminal, one line a logging interval elsewhere."""

    def __init__(self, num_steps: int, first_step: int, enabled: bool) -> None:
        self.num_steps = num_steps
        self.first_step = first_step
        self.enabled = enabled
        self.started = time.monotonic()
        console = Console()
        self.live = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not (enabled and console.is_terminal),
        )
        self.task = self.live.add_task("train", total=num_steps, completed=first_step, status="")

    def __enter__(self) -> "ProgressLine":
        self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def show(self, record: dict[str, Any]) -> None:
        """Show the newest step's record."""
        step = record["step"]
        status = (
            f"loss {record['loss']:.4f}  grad {record['grad_norm']:.2f}  lr {record['lr']:.2e}  "
            f"{record['tokens_per_second']:,.0f} tokens/s"
        )
        self.live.update(self.task, completed=step, status=status)
        if self.enabled and self.live.disable:
            elapsed = time.monotonic() - self.started
            left = elapsed / max(1, step - self.first_step) * (self.num_steps - step)
            print(f"step {step}/{self.num_steps}  {status}  {format_duration(left)} left", flush=True)

    def say(self, text: str) -> None:
        """A line above the live one."""
        if self.enabled:
            self.live.console.print(text, highlight=False, soft_wrap=True)


def format_duration(seconds: float) -> str:
    """Such as 3:05 or 2:03:05."""
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The records of a run folder's metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def _drop_lines_after(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines(keepends=True):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError):  # cut short by a kill
            continue
    path.write_text("".join(kept))
