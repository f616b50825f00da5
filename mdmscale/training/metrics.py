"""The metrics of a run: metrics.jsonl, TensorBoard and the progress line on the console."""

import json
import math
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from mdmscale.system.files import write_file
from mdmscale.system.run_folder import RunFolder
from mdmscale.training.gradient_norms import variation
from mdmscale.training.retention import best_checkpoint

if TYPE_CHECKING:
    from mdmscale.training.setup import Run


class MetricsWriter:
    """Writes metrics.jsonl, one line per step, and TensorBoard's event files. Does nothing unless `enabled`.

    On resume it drops the lines after the resumed step, so the file reads as one uninterrupted run.
    """

    def __init__(self, folder: Path, first_step: int, tensorboard: bool, enabled: bool) -> None:
        self.file: IO[str] | None = None
        self.board: Any = None
        if not enabled:
            return
        run = RunFolder(folder)
        _drop_lines_after(run.metrics, first_step)
        self.file = run.metrics.open("a")
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(run.tensorboard), purge_step=first_step + 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for output in (self.file, self.board):
            if output is not None:
                output.close()

    def write(self, record: dict[str, Any]) -> None:
        """Add the record of one step. The record's `step` is the number of steps taken, from 1.

        TensorBoard gets the numbers of the record. The table of p(t) is not a number: `figure` shows it.
        """
        if self.file is not None:
            self.file.write(json.dumps(record) + "\n")
        if self.board is not None:
            for name, value in record.items():
                if name != "step" and isinstance(value, int | float):
                    self.board.add_scalar(name, value, record["step"])

    def figure(self, name: str, figure: Any, step: int) -> None:
        """Show a matplotlib figure in TensorBoard."""
        if self.board is not None:
            self.board.add_figure(name, figure, step)

    def text(self, name: str, text: str, step: int) -> None:
        """Show a text (Markdown) in TensorBoard."""
        if self.board is not None:
            self.board.add_text(name, text, step)

    def flush(self) -> None:
        """Flush everything written so far to disk."""
        for output in (self.file, self.board):
            if output is not None:
                output.flush()


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
        loss = sum(record["loss"] for record in self.recent) / len(self.recent)
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
    records = read_metrics(run.folder.path)
    recent = [record["loss"] for record in records[-20:]]
    evaluations = [record for record in records if "eval_loss" in record]
    verb = "stopped on request" if stopped else "finished" if steps_now else "already finished"
    lines = [
        f"{verb} at step {run.step} of {run.config.train.steps}: "
        f"{steps_now} steps in {format_duration(seconds)}",
        f"  tokens      {run.consumed_tokens:,} in {run.consumed_samples:,} samples",
    ]
    if recent:  # empty if this run started from another run's final checkpoint
        mean = sum(recent) / len(recent)
        lines.append(f"  loss        {mean:.4f} nats a token, mean of the last {len(recent)} steps")
    controlled = [record["loss_controlled"] for record in records[-20:] if "loss_controlled" in record]
    if controlled:
        mean = sum(controlled) / len(controlled)
        lines.append(f"  controlled  {mean:.4f} nats a token, the same with the noise of t taken out")
    if evaluations:
        lines.append(f"  eval loss   {evaluations[-1]['eval_loss']:.4f} nats a token, held out")
        if "eval_loss_ema" in evaluations[-1]:
            lines.append(f"  eval of EMA {evaluations[-1]['eval_loss_ema']:.4f}, of the averaged weights")
    lines += _describe_gradients(records[len(records) // 2 :])
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


def _describe_gradients(records: list[dict[str, Any]]) -> list[str]:
    """How often `records` were clipped and how much their gradient norms vary; nothing for old records."""
    clipped = [record["clipped"] for record in records if "clipped" in record]
    norms = [record["grad_norm"] for record in records if math.isfinite(record["grad_norm"])]
    if not clipped or not norms:
        return []
    share = sum(clipped) / len(clipped)
    return [
        f"  gradient    clipped in {share:.0%} of the last {len(clipped)} steps; its norm varies by "
        f"{variation(norms):.0%}"
    ]


def format_duration(seconds: float) -> str:
    """A duration as text, such as 3:05 or 2:03:05."""
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def read_metrics(folder: Path, last: int = 0) -> list[dict[str, Any]]:
    """The records of a run folder's metrics.jsonl, or only the `last` ones."""
    return [json.loads(line) for line in RunFolder(folder).metrics.read_text().splitlines()[-last:]]


def _drop_lines_after(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines(keepends=True):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError):  # a kill cut the line short
            continue
    write_file(path, "".join(kept))
