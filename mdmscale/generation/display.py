"""How samples, and with --watch their making, look on a terminal and in a pipe."""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import groupby
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from mdmscale.generation.job import Job, Tally, make_progress, sample_batch
from mdmscale.generation.loading import LoadedModel
from mdmscale.generation.prompts import Request
from mdmscale.generation.sampler import batches

if TYPE_CHECKING:
    from mdmscale.generation.denoise import Frame

MASK_SIGN = "░"
STYLES = {"given": "dim", "masked": "dim", "new": "bold green", "done": ""}


def print_texts(job: Job, *, watch: bool) -> None:
    """Sample everything in order; print each batch's texts as soon as they are there, and the speed.

    Raises:
        UserError: for sources that the model cannot take.
    """
    output, notes = Console(), Console(stderr=True, highlight=False)
    loaded = job.load()
    requests = list(job.requests(loaded).values())
    progress = make_progress(requests, job.facts.mask_token_id, "denoising", shown=not watch)
    tally = Tally(time.perf_counter())
    for members in batches(requests, job.batch_size):
        # The bar is off the screen while texts are printed.
        with progress, Watcher(notes, loaded) if watch else nullcontext() as watcher:
            generations = sample_batch(job, loaded, members, progress, watcher)
        tally.add(generations, job.facts.mask_token_id)
        for generation in generations:
            title = f"sample {generation.request.sample + 1} of {job.num_samples}"
            title += f" | {generation.request.label}" if generation.request.label else ""
            print_sample(output, generation.text, title if output.is_terminal or len(requests) > 1 else None)
    notes.print(tally.summary(loaded.device.type), soft_wrap=True)


def print_sample(output: Console, text: str, title: str | None) -> None:
    """On a terminal a rule and the text; elsewhere the bare text, under a plain line where it has a title."""
    if title is not None and output.is_terminal:
        output.rule(Text(title), align="left", style="dim")
    elif title is not None:
        print(f"--- {title} ---", file=output.file)
    if output.is_terminal:
        output.print(Text(printable(text)), soft_wrap=True)
    else:
        print(text, file=output.file)


def printable(text: str) -> str:
    """Without control characters, which an undertrained model may well write and which upset a terminal."""
    return "".join(
        char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in text
    )


class Watcher:
    """Shows a batch after each step: in place on a terminal, elsewhere a line a text and step."""

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
        """The texts of a frame, masks as shades and new tokens bold."""
        lines = [frame_text(self.loaded, request, frame, row) for row, request in enumerate(requests)]
        if self.console.is_terminal:
            self.live.update(Group(*lines), refresh=True)
            return
        for line, passes in zip(lines, frame.num_forwards, strict=True):
            print(f"{passes:4} | " + line.plain.replace("\n", "\\n"), file=self.console.file)


def frame_text(loaded: LoadedModel, request: Request, frame: "Frame", row: int) -> Text:
    """A text of a frame: runs of tokens in the same state are decoded together."""
    mask = loaded.facts.mask_token_id
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
