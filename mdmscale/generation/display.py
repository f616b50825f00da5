"""Print samples, and with --watch every step, on a terminal or into a pipe."""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import groupby
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from mdmscale.generation.prompts import Request
from mdmscale.generation.sampler import batches
from mdmscale.generation.task import GenerationTask, Tally, make_progress, sample_batch
from mdmscale.models.opening import LoadedModel

if TYPE_CHECKING:
    from mdmscale.generation.denoise import Frame

MASK_SIGN = "░"
STYLES = {"given": "dim", "masked": "dim", "new": "bold green", "done": ""}


def print_texts(task: GenerationTask, *, watch: bool) -> None:
    """Sample all texts in order. Print each batch when it is finished, and the speed at the end.

    Raises:
        UserError: where sources do not fit the model.
    """
    output, notes = Console(), Console(stderr=True, highlight=False)
    loaded = task.load()
    requests = list(task.requests(loaded).values())
    progress = make_progress(requests, task.description.wanted_id, "denoising", shown=not watch)
    tally = Tally(time.perf_counter())
    for members in batches(requests, task.batch_size):
        # The progress bar leaves the screen before texts are printed.
        with progress, Watcher(notes, loaded) if watch else nullcontext() as watcher:
            generations = sample_batch(task, loaded, members, progress, watcher.show if watcher else None)
        tally.add(generations, task.description.wanted_id)
        for generation in generations:
            title = f"sample {generation.request.sample + 1} of {task.num_samples}"
            title += f" | {generation.request.label}" if generation.request.label else ""
            print_sample(output, generation.text, title if output.is_terminal or len(requests) > 1 else None)
    notes.print(tally.summary(loaded.device.type), soft_wrap=True)


def print_sample(output: Console, text: str, title: str | None) -> None:
    """Print the text below its title: on a terminal below a rule, elsewhere below a plain line."""
    if title is not None and output.is_terminal:
        output.rule(Text(title), align="left", style="dim")
    elif title is not None:
        print(f"--- {title} ---", file=output.file)
    if output.is_terminal:
        output.print(Text(printable(text)), soft_wrap=True)
    else:
        print(text, file=output.file)


def printable(text: str) -> str:
    """`text` without control characters, which a poorly trained model may write and which upset terminals."""
    return "".join(
        char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in text
    )


class Watcher:
    """Show a batch after each step: on a terminal in place, elsewhere one line for each text and step."""

    def __init__(self, console: Console, loaded: LoadedModel) -> None:
        self.console = console
        self.loaded = loaded
        self.live = Live(console=console, auto_refresh=False, vertical_overflow="visible", transient=True)

    def __enter__(self) -> "Watcher":
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def show(self, requests: Sequence[Request], frame: "Frame") -> None:
        """Show the texts of a frame. Masks appear as shaded blocks, new tokens in bold."""
        lines = [frame_text(self.loaded, request, frame, row) for row, request in enumerate(requests)]
        if self.console.is_terminal:
            self.live.update(Group(*lines), refresh=True)
            return
        for line, passes in zip(lines, frame.num_forwards, strict=True):
            print(f"{passes:4} | " + line.plain.replace("\n", "\\n"), file=self.console.file)


def frame_text(loaded: LoadedModel, request: Request, frame: "Frame", row: int) -> Text:
    """One text of a frame. Neighbouring tokens in the same state are decoded together."""
    mask = loaded.description.wanted_id
    states = []
    for given, token, is_new in zip(request.token_ids, frame.row(row), frame.new_in_row(row), strict=True):
        state = "given" if given != mask else "masked" if token == mask else "new" if is_new else "done"
        states.append((state, token))
    text = Text()
    for state, run in groupby(states, key=lambda pair: pair[0]):
        token_ids = [token for _, token in run]
        shown = MASK_SIGN * len(token_ids) if state == "masked" else str(loaded.tokenizer.decode(token_ids))
        text.append(printable(shown), style=STYLES[state])
    return text
