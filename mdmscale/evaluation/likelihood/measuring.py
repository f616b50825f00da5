"""Measure the sources: ranks share them, finished items are kept, results appear when all are there."""

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mdmscale.config.data import SpecialTokens
from mdmscale.evaluation.likelihood.encoding import Encoder, Target, encode_sources
from mdmscale.evaluation.likelihood.items import Item, make_item
from mdmscale.evaluation.likelihood.plan import LikelihoodOptions
from mdmscale.evaluation.likelihood.scoring import log_likelihoods, num_forwards
from mdmscale.evaluation.likelihood.sources import Source
from mdmscale.evaluation.likelihood.summary import print_summary, summarise
from mdmscale.evaluation.results import Results
from mdmscale.models.opening import LoadedModel, ModelDescription, load_quietly
from mdmscale.parallel.work_group import WorkGroup
from mdmscale.system.console import make_console, work_progress
from mdmscale.system.partial_output import PartialOutput, Place
from mdmscale.weights.fingerprint import weights_fingerprint

if TYPE_CHECKING:
    from rich.progress import Progress

SECONDS_BETWEEN_WRITES = 2.0


@dataclass(frozen=True)
class Measurement:
    """A model, and what is measured of it. settings: all that decides the items besides the model."""

    model: str
    description: ModelDescription
    options: LikelihoodOptions
    sources: list[Source]
    settings: dict[str, Any]
    batch_size: int
    output: Path | None

    def load(self) -> LoadedModel:
        """Load the model, without transformers' progress bar."""
        return load_quietly(self.description, self.settings["dtype"])

    def encoder(self, loaded: LoadedModel) -> Encoder:
        special_tokens: SpecialTokens = self.settings["special_tokens"]
        return Encoder(loaded, special_tokens, self.settings["max_length"], self.settings["context"])

    def results(self, items: list[Item]) -> Results:
        return Results("likelihood", self.model, self.settings, summarise(items), items)


@dataclass(frozen=True)
class _Work:
    """A source to measure, as tokens."""

    number: int
    source: Source
    targets: list[Target]

    @property
    def length(self) -> int:
        """The tokens of its longest window."""
        return max(
            len(window.prompt_ids) + len(window.target_ids)
            for target in self.targets
            for window in target.windows
        )


def measure(measurement: Measurement, group: WorkGroup, *, overwrite: bool) -> list[Item]:
    """Measure this rank's share of what the output lacks. Rank 0 prints the summary, and gets the items.

    Raises:
        UserError: where sources do not fit the model, or the output exists or was begun with other settings.
    """
    partial = _partial(measurement, group, overwrite=overwrite)
    loaded = measurement.load()
    targets = encode_sources(measurement.encoder(loaded), measurement.sources)
    work = [
        _Work(number, *each) for number, each in enumerate(zip(measurement.sources, targets, strict=True))
    ]
    finished = {} if partial is None else partial.finished()
    group.wait()  # all ranks must have read the files before one appends to them
    if finished and group.is_first:
        _note(f"{measurement.output}: continuing after {len(finished)} of {len(work)}")
    todo = [each for each in work if (each.number,) not in finished]
    todo.sort(key=lambda each: (each.length, each.number))  # keeps padding small and shares equal
    started = time.perf_counter()
    try:
        mine = _measure_share(measurement, loaded, todo[group.rank :: group.world_size], partial, group)
        group.wait()
    except KeyboardInterrupt:
        if partial is not None and group.is_first:
            done = len(partial.finished())
            _note(f"{measurement.output}: the same command continues after {done} of {len(work)}")
        raise
    if not group.is_first:
        return []
    found = mine if partial is None else partial.finished()
    forwards = sum(item["forwards"] for place, item in found.items() if place not in finished)
    seconds = time.perf_counter() - started
    items = [found[place] for place in sorted(found)]
    _conclude(measurement, partial, items)
    _note(f"{forwards:,} forward rows in {seconds:.1f} s on {loaded.device.type}")
    return items


def _conclude(measurement: Measurement, partial: PartialOutput | None, items: list[Item]) -> None:
    """Write the output if there is one, and print the summary."""
    if partial is not None:
        partial.publish(lambda values: measurement.results(values).lines())
    print_summary(make_console(), summarise(items))
    if partial is not None:
        _note(f"{measurement.output}: {len(items)} items")


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _partial(measurement: Measurement, group: WorkGroup, *, overwrite: bool) -> PartialOutput | None:
    if measurement.output is None:
        return None
    recipe = {
        "model": measurement.model,
        "weights": weights_fingerprint(str(measurement.description.folder)),
        **measurement.settings,
    }
    partial = PartialOutput(measurement.output, recipe, group.rank)
    group.on_first_rank(lambda: partial.begin(overwrite))
    return partial


def _measure_share(
    measurement: Measurement,
    loaded: LoadedModel,
    share: list[_Work],
    partial: PartialOutput | None,
    group: WorkGroup,
) -> dict[Place, Item]:
    """Measure this rank's share. With a partial output finished items go to disk within seconds."""
    found: dict[Place, Item] = {}
    unwritten: dict[Place, Item] = {}
    written = time.monotonic()
    with _progress(measurement, loaded, share, group) as progress:
        try:
            for place, item in _items(measurement, loaded, share):
                found[place] = unwritten[place] = item
                progress.advance(progress.task_ids[0], item["forwards"])
                if partial is not None and time.monotonic() - written > SECONDS_BETWEEN_WRITES:
                    partial.append(unwritten)
                    unwritten, written = {}, time.monotonic()
        finally:
            if partial is not None and unwritten:
                partial.append(unwritten)
    return found


def _items(measurement: Measurement, loaded: LoadedModel, share: list[_Work]) -> Iterator[tuple[Place, Item]]:
    """Each source's item as soon as its windows are scored."""
    scored = [window for each in share for target in each.targets for window in target.windows]
    found = log_likelihoods(loaded, scored, measurement.options, measurement.batch_size)
    for each in share:
        windows = [list(islice(found, len(target.windows))) for target in each.targets]
        yield (each.number,), make_item(each.number, each.source, each.targets, windows)


def _progress(
    measurement: Measurement, loaded: LoadedModel, share: list[_Work], group: WorkGroup
) -> "Progress":
    """A progress bar of forward rows, on stderr if that is a terminal."""
    total = sum(
        num_forwards(loaded, window, measurement.options)
        for each in share
        for target in each.targets
        for window in target.windows
    )
    title = "scoring" if group.world_size == 1 else f"scoring, rank 0 of {group.world_size}"
    return work_progress(title, total, shown=group.is_first)
