"""What the command line asks for: which texts to sample, how, and how much of it is done."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from mdmscale.config.data import SpecialTokens
from mdmscale.generation.options import GenerationOptions
from mdmscale.generation.prompts import Request
from mdmscale.generation.sampler import Generation, finish, stream
from mdmscale.generation.sources import Source, encode
from mdmscale.models.opening import LoadedModel, ModelDescription, load_quietly
from mdmscale.system.digest import digest
from mdmscale.system.errors import UserError
from mdmscale.system.partial_output import Place

if TYPE_CHECKING:
    from rich.progress import Progress

    from mdmscale.generation.denoise import Frame

MAX_PROBLEMS = 10


@dataclass(frozen=True)
class GenerationTask:
    """A model, the sources to sample from, and how to sample."""

    description: ModelDescription
    options: GenerationOptions
    sources: list[Source]
    num_samples: int
    batch_size: int
    chat: bool
    raw: bool
    dtype: str | None
    special_tokens: SpecialTokens = "refuse"

    def load(self) -> LoadedModel:
        """Load the model, without transformers' progress bar.

        Raises:
            UserError: where it cannot be loaded, or the options do not fit it.
        """
        from mdmscale.generation.left_to_right import check_options

        check_options(self.description, self.options)
        return load_quietly(self.description, self.dtype)

    def requests(self, loaded: LoadedModel) -> dict[Place, Request]:
        """Every text to sample, by the number of its source and of the sample of that source.

        Raises:
            UserError: naming each source that does not fit the model, up to MAX_PROBLEMS.
        """
        requests: dict[Place, Request] = {}
        problems: list[str] = []
        for number, source in enumerate(self.sources):
            try:
                request = encode(
                    loaded,
                    source,
                    self.options.length,
                    chat=self.chat,
                    special_tokens=self.special_tokens,
                )
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
        """All that decides the texts. A half-written output may be continued only with the same recipe."""
        folder = self.description.folder
        files = sorted(folder.glob("*.safetensors"))
        weights = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        options = asdict(self.options)
        del options["padding"]  # it changes no token
        return {
            "model": str(folder.resolve()),
            "weights": digest(weights),
            "inputs": digest(self.sources),
            "num_samples": self.num_samples,
            "chat": self.chat,
            "special_tokens": self.special_tokens,
            "raw": self.raw,
            "dtype": self.dtype,
            **options,
        }


@dataclass
class Tally:
    """How much has been sampled since `started`."""

    started: float
    num_texts: int = 0
    num_tokens: int = 0
    num_forwards: int = 0

    def add(self, generations: Sequence[Generation], wanted_id: int) -> None:
        self.num_texts += len(generations)
        self.num_forwards += sum(each.num_forwards for each in generations)
        self.num_tokens += sum(each.request.token_ids.count(wanted_id) for each in generations)

    def summary(self, device: str) -> str:
        seconds = time.perf_counter() - self.started
        passes = self.num_forwards / max(1, self.num_texts)
        return (
            f"{self.num_texts} texts, {self.num_tokens} tokens in {passes:.1f} passes a text: "
            f"{seconds:.1f} s, {self.num_tokens / seconds:.0f} tokens/s on {device}"
        )


def total(tallies: Sequence[Tally], started: float) -> Tally:
    """The sum of several ranks' tallies. `started` is this rank's: clocks of different hosts disagree."""
    columns = zip(*((each.num_texts, each.num_tokens, each.num_forwards) for each in tallies), strict=True)
    return Tally(started, *(sum(column) for column in columns))


def sample_batch(
    task: GenerationTask,
    loaded: LoadedModel,
    members: Sequence[Request],
    progress: "Progress",
    show: "Callable[[Sequence[Request], Frame], None] | None" = None,
) -> list[Generation]:
    """Sample a batch. `progress` counts committed tokens; `show` gets the batch after every step."""
    frame = None
    for frame in stream(loaded, members, task.options):
        progress.advance(progress.task_ids[0], int(frame.is_new.sum()))
        if show is not None:
            show(members, frame)
    return list(finish(loaded, members, frame, raw=task.raw))


def make_progress(requests: Sequence[Request], wanted_id: int, title: str, *, shown: bool) -> "Progress":
    """A progress bar of tokens to commit, on stderr if that is a terminal."""
    from mdmscale.system.console import work_progress

    total = sum(request.token_ids.count(wanted_id) for request in requests)
    return work_progress(title, total, shown=shown)
