"""A command's work: which texts to sample, a batch of them, and what has been done so far."""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from mdmscale.generation.loading import FolderFacts, LoadedModel, load_model
from mdmscale.generation.options import GenerationOptions
from mdmscale.generation.output import Place
from mdmscale.generation.prompts import Request
from mdmscale.generation.sampler import Generation, finish, stream
from mdmscale.generation.sources import Source, encode
from mdmscale.system.errors import UserError

if TYPE_CHECKING:
    from rich.progress import Progress

    from mdmscale.generation.display import Watcher

MAX_PROBLEMS = 10


@dataclass(frozen=True)
class Job:
    """What the command line asks for."""

    facts: FolderFacts
    options: GenerationOptions
    sources: list[Source]
    num_samples: int
    batch_size: int
    chat: bool
    raw: bool
    dtype: str | None

    def load(self) -> LoadedModel:
        """The model, without a progress bar of transformers'."""
        from transformers.utils import logging

        logging.disable_progress_bar()
        return load_model(self.facts, self.dtype)

    def requests(self, loaded: LoadedModel) -> dict[Place, Request]:
        """Every text to sample, by its source and its number among that source's samples.

        Raises:
            UserError: naming the sources that the model cannot take.
        """
        requests: dict[Place, Request] = {}
        problems: list[str] = []
        for number, source in enumerate(self.sources):
            try:
                request = encode(loaded, source, self.options.length, chat=self.chat)
            except UserError as error:
                problems += error.problems
                continue
            if self.options.cache and request.prompt_length is None:
                problems.append(f"cache: {request.label!r} has masks anywhere, and so no finished prefix")
            for sample in request.samples(self.num_samples):
                requests[number, sample.sample] = sample
        if problems:
            more = len(problems) - MAX_PROBLEMS
            raise UserError(*problems[:MAX_PROBLEMS], *([f"and {more} more like these"] if more > 0 else []))
        return requests

    def recipe(self) -> dict[str, Any]:
        """All that the texts follow from, for telling whether half an output may be finished."""
        files = sorted(self.facts.folder.glob("*.safetensors"))
        weights = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        options = asdict(self.options)
        del options["padding"]  # changes no token
        return {
            "model": str(self.facts.folder.resolve()),
            "weights": _digest(weights),
            "inputs": _digest(self.sources),
            "num_samples": self.num_samples,
            "chat": self.chat,
            "raw": self.raw,
            "dtype": self.dtype,
            **options,
        }


@dataclass
class Tally:
    """What has been done, and since when."""

    started: float
    num_texts: int = 0
    num_tokens: int = 0
    num_forwards: int = 0

    def add(self, generations: Sequence[Generation], mask_token_id: int) -> None:
        self.num_texts += len(generations)
        self.num_forwards += sum(each.num_forwards for each in generations)
        self.num_tokens += sum(each.request.token_ids.count(mask_token_id) for each in generations)

    def summary(self, device: str) -> str:
        seconds = time.perf_counter() - self.started
        passes = self.num_forwards / max(1, self.num_texts)
        return (
            f"{self.num_texts} texts, {self.num_tokens} tokens in {passes:.1f} passes a text: "
            f"{seconds:.1f} s, {self.num_tokens / seconds:.0f} tokens/s on {device}"
        )


def sample_batch(
    job: Job,
    loaded: LoadedModel,
    members: Sequence[Request],
    progress: "Progress",
    watcher: "Watcher | None",
) -> list[Generation]:
    """Sample a batch; progress counts committed tokens."""
    frame = None
    for frame in stream(loaded, members, job.options):
        progress.advance(progress.task_ids[0], int(frame.is_new.sum()))
        if watcher is not None:
            watcher.show(members, frame)
    return list(finish(loaded, members, frame, raw=job.raw))


def make_progress(requests: Sequence[Request], mask_token_id: int, title: str, *, shown: bool) -> "Progress":
    """A bar of tokens to commit, on stderr where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    progress = Progress(
        *columns, console=console, transient=True, disable=not (shown and console.is_terminal)
    )
    total = sum(request.token_ids.count(mask_token_id) for request in requests)
    progress.add_task(title, total=total)
    return progress


def _digest(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=8).hexdigest()
