"""A job shared among ranks, each of which samples a part of the JSONL file that appears when all are done."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mdmscale.generation.job import Job, Tally, make_progress, sample_batch
from mdmscale.generation.loading import LoadedModel
from mdmscale.generation.output import PartialOutput, Place
from mdmscale.generation.prompts import Request
from mdmscale.generation.sampler import Generation, batches
from mdmscale.generation.sources import GENERATED, Source


def write_jsonl(job: Job, path: Path, *, overwrite: bool) -> None:
    """Sample what `path` has not yet, this rank its share of it, and publish the file when all have finished.

    Raises:
        UserError: for sources that the model cannot take, or an output that is there or was begun otherwise.
    """
    from rich.console import Console

    notes = Console(stderr=True, highlight=False)
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    partial = PartialOutput(path, job.recipe(), rank)
    group = _Group(world_size)
    group.first_rank(lambda: partial.begin(overwrite))
    loaded = job.load()
    requests = job.requests(loaded)
    finished = partial.finished()
    group.wait()  # no rank may add to the files before all have read them
    todo = [(place, request) for place, request in requests.items() if place not in finished]
    todo.sort(key=lambda each: (len(each[1].token_ids), each[0]))  # little padding, and equal shares
    if finished and rank == 0:
        notes.print(f"{path}: going on after {len(finished)} of {len(requests)} texts", soft_wrap=True)
    try:
        tally = group.total(_sample_share(job, loaded, todo[rank::world_size], partial, rank, world_size))
    except KeyboardInterrupt:
        if rank == 0:
            notes.print(
                f"{path}: the same command goes on after {len(partial.finished())} texts", soft_wrap=True
            )
        raise
    if rank == 0:
        num_lines = partial.publish()
        ranks = f" x {world_size}" if world_size > 1 else ""
        summary = tally.summary(loaded.device.type + ranks)
        notes.print(f"{path}: {num_lines} lines; {summary}", soft_wrap=True)
    group.leave()


def _sample_share(
    job: Job,
    loaded: LoadedModel,
    share: list[tuple[Place, Request]],
    partial: PartialOutput,
    rank: int,
    world_size: int,
) -> Tally:
    """Sample this rank's share, each batch of which is kept as soon as it is there."""
    tally = Tally(time.perf_counter())
    title = "denoising" if world_size == 1 else f"denoising, rank 0 of {world_size}"
    texts = [request for _, request in share]
    with make_progress(texts, job.facts.mask_token_id, title, shown=rank == 0) as progress:
        for members in batches(share, job.batch_size):
            generations = sample_batch(job, loaded, [request for _, request in members], progress, None)
            tally.add(generations, job.facts.mask_token_id)
            lines = {
                place: output_line(job.sources[place[0]], generation)
                for (place, _), generation in zip(members, generations, strict=True)
            }
            partial.append(lines)
    return tally


def output_line(source: Source, generation: Generation) -> dict[str, Any]:
    """The source's own keys and the sampled text."""
    return {
        **source,
        "sample": generation.request.sample,
        GENERATED: generation.text,
        "num_forwards": generation.num_forwards,
    }


class _Group:
    """The ranks of a launcher; of a single process nothing is joined."""

    def __init__(self, world_size: int) -> None:
        self.ranks = None
        if world_size > 1:
            from mdmscale.parallel.ranks import initialise

            self.ranks = initialise()

    def first_rank(self, action: Callable[[], None]) -> None:
        if self.ranks is None:
            action()
            return
        from mdmscale.parallel.collectives import on_first_rank

        on_first_rank(self.ranks, action)

    def wait(self) -> None:
        if self.ranks is not None:
            import torch.distributed as dist

            dist.barrier()

    def total(self, tally: Tally) -> Tally:
        """Summed over ranks, after all have come here."""
        if self.ranks is None:
            return tally
        import torch.distributed as dist

        tallies: list[Any] = [None] * self.ranks.world_size
        dist.all_gather_object(tallies, (tally.num_texts, tally.num_tokens, tally.num_forwards))
        return Tally(tally.started, *(sum(column) for column in zip(*tallies, strict=True)))

    def leave(self) -> None:
        from mdmscale.parallel.ranks import finalise

        finalise()
