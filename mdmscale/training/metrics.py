"""The metrics of a run: metrics.jsonl, TensorBoard and the progress line on the console."""

import math
import os
import time
from array import array
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from mdmscale.system.disk import disk_errors
from mdmscale.system.files import fsync
from mdmscale.system.json_lines import json_line, read_objects, read_objects_backwards
from mdmscale.system.run_folder import RunFolder
from mdmscale.training.gradient_norms import variation
from mdmscale.training.retention import best_checkpoint

if TYPE_CHECKING:
    from mdmscale.training.setup import Run


class MetricsWriter:
    """Writes metrics.jsonl, one line per step, and TensorBoard's event files. Does nothing unless `enabled`.

    On resume it drops the lines after the resumed step, so the file reads as one uninterrupted run. An error
    of the disk is a UserError in every method.
    """

    def __init__(self, folder: Path, first_step: int, tensorboard: bool, enabled: bool) -> None:
        self.run = RunFolder(folder)
        self.file: IO[str] | None = None
        self.board: Any = None
        if not enabled:
            return
        with disk_errors(self.run.metrics):
            _drop_lines_after(self.run.metrics, first_step)
            self.file = self.run.metrics.open("a", encoding="utf-8")
            fsync(folder)  # so that a power failure leaves the file in its place
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            with disk_errors(self.run.tensorboard):
                self.board = SummaryWriter(str(self.run.tensorboard), purge_step=first_step + 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for output, path in ((self.file, self.run.metrics), (self.board, self.run.tensorboard)):
            if output is not None:
                with disk_errors(path) if kind is None else suppress(OSError):  # the first error tells more
                    output.close()

    def write(self, record: dict[str, Any]) -> None:
        """Add the record of one step. The record's `step` is the number of steps taken, from 1.

        TensorBoard gets the numbers of the record. The table of p(t) is not a number: `figure` shows it.
        """
        if self.file is not None:
            with disk_errors(self.run.metrics):
                self.file.write(json_line(record))
        if self.board is not None:
            with disk_errors(self.run.tensorboard):
                for name, value in record.items():
                    if name != "step" and isinstance(value, int | float):
                        self.board.add_scalar(name, value, record["step"])

    def figure(self, name: str, figure: Any, step: int) -> None:
        """Show a matplotlib figure in TensorBoard."""
        if self.board is not None:
            with disk_errors(self.run.tensorboard):
                self.board.add_figure(name, figure, step)

    def text(self, name: str, text: str, step: int) -> None:
        """Show a text (Markdown) in TensorBoard."""
        if self.board is not None:
            with disk_errors(self.run.tensorboard):
                self.board.add_text(name, text, step)

    def flush(self) -> None:
        """Hand everything written so far to the system, so that it survives the end of this process."""
        if self.file is not None:
            with disk_errors(self.run.metrics):
                self.file.flush()
        if self.board is not None:
            with disk_errors(self.run.tensorboard):
                self.board.flush()

    def sync(self) -> None:
        """As `flush`, and wait until metrics.jsonl is on disk, so that it survives a power failure, too."""
        self.flush()
        if self.file is not None:
            with disk_errors(self.run.metrics):
                os.fsync(self.file.fileno())


class ProgressLine:
    """Progress on the console: a live line on a terminal, otherwise one line per logging interval.

    Loss, speed and time left are based on means since the previous line, because single steps are noisy.
    """

    def __init__(self, num_steps: int, first_step: int, enabled: bool) -> None:
        console = Console()
        self.num_steps = num_steps
        self.enabled = enabled
        self.live = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[status]}"),
            console=console,
            disable=not (enabled and console.is_terminal),
        )
        self.task = self.live.add_task("train", total=num_steps, completed=first_step, status="")
        self.recent: list[dict[str, Any]] = []
        self.since = time.monotonic()

    def __enter__(self) -> Self:
        self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def add(self, record: dict[str, Any]) -> None:
        """Add the record of a step."""
        self.recent.append(record)
        self.live.update(self.task, completed=record["step"])

    def show(self) -> None:
        """Show the steps since the previous call."""
        now, last = time.monotonic(), self.recent[-1]
        seconds_a_step = (now - self.since) / len(self.recent)
        losses = [record["loss"] for record in self.recent if math.isfinite(record["loss"])]
        loss = sum(losses) / len(losses) if losses else math.nan
        speed = sum(record["tokens_per_second"] for record in self.recent) / len(self.recent)
        left = format_duration(seconds_a_step * (self.num_steps - last["step"]))
        status = (
            f"loss {loss:.4f}  grad {last['grad_norm']:.2f}  lr {last['lr']:.2e}  "
            f"{speed:,.0f} tokens/s  {left} left"
        )
        self.live.update(self.task, status=status)
        if self.enabled and self.live.disable:
            print(f"step {last['step']}/{self.num_steps}  {status}", flush=True)
        self.recent, self.since = [], now

    def say(self, text: str) -> None:
        """Print a line above the live one."""
        if self.enabled:
            self.live.console.print(text, highlight=False, soft_wrap=True)


def closing_summary(run: "Run", steps_now: int, seconds: float, stopped: bool) -> str:
    """The last lines of a run's log: steps, tokens, final losses and the paths of its results."""
    names = ("loss", "loss_controlled", "eval_loss", "eval_loss_ema", "clipped", "grad_norm")
    series = read_series(run.folder.path, names)
    verb = "stopped on request" if stopped else "finished" if steps_now else "already finished"
    lines = [
        f"{verb} at step {run.step} of {run.config.train.steps}: "
        f"{steps_now} steps in {format_duration(seconds)}",
        f"  tokens      {run.consumed_tokens:,} in {run.consumed_samples:,} samples",
    ]
    recent, controlled = series["loss"].values[-20:], series["loss_controlled"].values[-20:]
    if len(recent):  # empty if this run started from another run's final checkpoint
        lines.append(f"  loss        {recent.mean():.4f} nats a token, mean of the last {len(recent)} steps")
    if len(controlled):
        lines.append(
            f"  controlled  {controlled.mean():.4f} nats a token, the same with the noise of t taken out"
        )
    held_out, averaged = series["eval_loss"], series["eval_loss_ema"]
    if len(held_out.steps):
        lines.append(f"  eval loss   {held_out.values[-1]:.4f} nats a token, held out")
        if np.array_equal(averaged.steps[-1:], held_out.steps[-1:]):
            lines.append(f"  eval of EMA {averaged.values[-1]:.4f}, of the averaged weights")
    if skipped := run.skipped.describe():
        lines.append(f"  skipped     {skipped}")
    lines += _describe_gradients(series["clipped"].second_half, series["grad_norm"].second_half)
    measure = run.config.checkpoint.keep_best
    if measure is not None and (best := best_checkpoint(run.folder.published_checkpoints(), measure)):
        lines.append(f"  best        {best}, by {measure}")
    lines.append(f"  run folder  {run.folder.path}")
    if stopped:
        lines.append("  continue    with the same command")
    else:
        lines.append(f"  model       {run.folder.export} (tools/generate.py samples from it)")
    return "\n".join(lines)


def describe_evaluation(record: dict[str, Any]) -> str:
    """The held-out losses of a record in words."""
    averaged = f", {record['eval_loss_ema']:.4f} of the average" if "eval_loss_ema" in record else ""
    return f"eval loss {record['eval_loss']:.4f}{averaged}"


def _describe_gradients(clipped: np.ndarray, norms: np.ndarray) -> list[str]:
    """How many steps were clipped and how much gradient norms vary; nothing for metrics of old versions."""
    if not len(clipped) or not len(norms):
        return []
    return [
        f"  gradient    clipped in {clipped.mean():.0%} of the last {len(clipped)} steps; its norm varies by "
        f"{variation(norms):.0%}"
    ]


def format_duration(seconds: float) -> str:
    """A duration as text, such as 3:05 or 2:03:05."""
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Series(NamedTuple):
    """A metric over the steps that have a number of it: steps int64 [steps], values float64 [steps]."""

    steps: np.ndarray
    values: np.ndarray

    @property
    def second_half(self) -> np.ndarray:
        """The values of the second half of the steps."""
        return self.values[len(self.values) // 2 :]


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The records of a run folder's metrics.jsonl. Those of a long run take gigabytes; see `read_series`."""
    return list(_records(folder))


def read_last_metrics(folder: Path, num: int) -> list[dict[str, Any]]:
    """The last `num` records of a run folder's metrics.jsonl, in order. No other part of the file is read."""
    backwards = (record for _, record in read_objects_backwards(RunFolder(folder).metrics))
    return list(islice(filter(_is_record, backwards), num))[::-1]


def read_series(folder: Path, names: tuple[str, ...]) -> dict[str, Series]:
    """The metrics `names` of a run folder, read as a stream: 16 bytes of memory for each number."""
    columns = {name: (array("q"), array("d")) for name in names}
    for record in _records(folder):
        for name, (steps, values) in columns.items():
            if isinstance(value := record.get(name), int | float):
                steps.append(record["step"])
                values.append(value)
    return {name: Series(np.array(steps), np.array(values)) for name, (steps, values) in columns.items()}


def _records(folder: Path) -> Iterator[dict[str, Any]]:
    return filter(_is_record, read_objects(RunFolder(folder).metrics))


def _is_record(content: dict[str, Any]) -> bool:
    return isinstance(content.get("step"), int)


def _drop_lines_after(path: Path, step: int) -> None:
    """Cut the file after the record of `step`, or the last one before it. Records are in order of steps."""
    if not path.is_file():
        return
    ends = (end for end, each in read_objects_backwards(path) if _is_record(each) and each["step"] <= step)
    kept = next(ends, 0) if step else 0
    with path.open("r+b") as file:
        file.truncate(kept)
        file.seek(max(0, kept - 1))
        if file.read(1) not in (b"", b"\n"):  # a kill came between a record and the end of its line
            file.write(b"\n")
