"""Write samples to a JSONL file. The ranks share the work, and the file appears when all have finished."""

import time
from pathlib import Path
from typing import Any

from mdmscale.generation.prompts import Request
from mdmscale.generation.sampler import Generation, batches
from mdmscale.generation.sources import GENERATED, Source
from mdmscale.generation.task import GenerationTask, Tally, make_progress, sample_batch, total
from mdmscale.models.opening import LoadedModel
from mdmscale.parallel.work_group import WorkGroup
from mdmscale.system.partial_output import PartialOutput, Place


def write_jsonl(task: GenerationTask, path: Path, *, overwrite: bool) -> None:
    """Sample this rank's share of the texts that `path` still lacks; rank 0 writes the file at the end.

    Raises:
        UserError: where sources do not fit the model, or where the output exists or was begun with another
            recipe.
    """
    from rich.console import Console

    notes = Console(stderr=True, highlight=False)
    group = WorkGroup()
    rank, world_size = group.rank, group.world_size
    partial = PartialOutput(path, task.recipe(), rank)
    group.on_first_rank(lambda: partial.begin(overwrite))
    loaded = task.load()
    requests = task.requests(loaded)
    finished = partial.finished()
    group.wait()  # all ranks must have read the files before one appends to them
    todo = [(key, request) for key, request in requests.items() if key not in finished]
    todo.sort(key=lambda each: (len(each[1].token_ids), each[0]))  # keeps padding small and shares equal
    if finished and rank == 0:
        notes.print(f"{path}: continuing after {len(finished)} of {len(requests)} texts", soft_wrap=True)
    try:
        mine = _sample_share(task, loaded, todo[rank::world_size], partial, rank, world_size)
        tally = total(group.gather(mine), mine.started)
    except KeyboardInterrupt:
        if rank == 0:
            notes.print(
                f"{path}: the same command continues after {len(partial.finished())} texts", soft_wrap=True
            )
        raise
    if rank == 0:
        num_lines = partial.publish()
        ranks = f" x {world_size}" if world_size > 1 else ""
        summary = tally.summary(loaded.device.type + ranks)
        notes.print(f"{path}: {num_lines} lines; {summary}", soft_wrap=True)
    group.leave()


def _sample_share(
    task: GenerationTask,
    loaded: LoadedModel,
    share: list[tuple[Place, Request]],
    partial: PartialOutput,
    rank: int,
    world_size: int,
) -> Tally:
    """Sample this rank's share; each finished batch goes to disk at once."""
    tally = Tally(time.perf_counter())
    title = "denoising" if world_size == 1 else f"denoising, rank 0 of {world_size}"
    texts = [request for _, request in share]
    with make_progress(texts, task.description.wanted_id, title, shown=rank == 0) as progress:
        for members in batches(share, task.batch_size):
            generations = sample_batch(task, loaded, [request for _, request in members], progress)
            tally.add(generations, task.description.wanted_id)
            lines = {
                key: output_line(task.sources[key[0]], generation)
                for (key, _), generation in zip(members, generations, strict=True)
            }
            partial.append(lines)
    return tally


def output_line(source: Source, generation: Generation) -> dict[str, Any]:
    """An output line: the keys of the source, and the sampled text."""
    return {
        **source,
        "sample": generation.request.sample,
        GENERATED: generation.text,
        "num_forwards": generation.num_forwards,
    }
