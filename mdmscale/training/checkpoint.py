"""Checkpoints: saved, found again, and checked against the run that resumes.

A checkpoint is complete or absent. It is written to an unfinished folder, verified by a manifest and
published by one rename. system/run_folder.py lists its files.

DeepSpeed's own `latest` file is not used: it is written without a barrier, so a kill at the wrong moment
leaves it naming a damaged checkpoint. Here the latest checkpoint is the newest folder that has its final name
and matches its manifest.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist

from mdmscale.config.run import RunConfig
from mdmscale.config.training import CheckpointSection
from mdmscale.data.skipping import merged_ranges, ranges_before
from mdmscale.data.source import SampleSource
from mdmscale.engine.engine import Engine
from mdmscale.engine.manifest import find_fault, read_manifest, write_manifest
from mdmscale.parallel.collectives import on_all_ranks, on_every_rank, on_first_rank
from mdmscale.parallel.ranks import Ranks
from mdmscale.system.disk import check_room, disk_errors
from mdmscale.system.errors import UserError
from mdmscale.system.files import fsync
from mdmscale.system.folders import discard, make_unfinished, publish, remove_published
from mdmscale.system.run_folder import (
    MODEL_FOLDER,
    leftover_checkpoints,
    published_checkpoints,
    step_name,
)
from mdmscale.system.sums import Sum, file_names, sum_of
from mdmscale.training.nonfinite import RESUME_LOWER, Ends
from mdmscale.training.retention import retired
from mdmscale.training.state import TrainingState

T = TypeVar("T")


def save(
    engine: Engine,
    state: TrainingState,
    write_model: Callable[[Path], None],
    folder: Path,
    options: CheckpointSection,
    ranks: Ranks,
) -> Path:
    """Publish a checkpoint of `engine` in `folder`, and remove those that `options` do not keep.

    Every rank calls this. Rank 0 calls `write_model`, which fills the model/ folder. A kill at any moment
    leaves either the complete checkpoint or none of that name. So the newest checkpoint, which always stays,
    is one whose values were finite.

    Raises:
        FloatingPointError: on every rank, if a value of the weights or of the optimizer is not finite on any.
            Nothing is written then.
        UserError: on every rank, if the disk has too little room or fails, or if the ranks do not all write
            to the same folder. Older checkpoints stay then.
    """
    if not on_all_ranks(ranks, engine.is_finite()):
        raise FloatingPointError(
            f"the weights or the optimizer's state are not finite after step {state.step}, so they are not "
            f"saved; {RESUME_LOWER}"
        )
    target = folder / step_name(state.step)
    unfinished = on_first_rank(ranks, lambda: _begin(target, engine.checkpoint_bytes()))
    try:
        on_every_rank(ranks, lambda: engine.save(unfinished))
        names = on_first_rank(ranks, lambda: _write_own_files(unfinished, state, write_model))
        sums = _each_on_one_rank(names, ranks, lambda name: _synced_sum(unfinished / name))
        on_first_rank(ranks, lambda: _publish(unfinished, target, sums, options))
    except UserError:
        if ranks.is_first:
            discard(unfinished)
        raise
    return target


def find_resume(
    resume: str, folder: Path, ranks: Ranks, ends: Ends | None = None
) -> tuple[Path | None, list[str]]:
    """The checkpoint to resume from (None: start from scratch), and warnings about what it passes over.

    A run that has checkpoints in `folder` resumes from the newest undamaged one, or from one before it if
    `ends` say that it has ended by values that are not finite more than once. Without any, it resumes from
    the checkpoint that `resume` names, if `resume` is a path.

    Raises:
        UserError: if `resume` is none but the run has checkpoints, if all of them are damaged, or if the
            checkpoint that `resume` names is damaged.
    """
    candidates = on_first_rank(ranks, lambda: published_checkpoints(folder))
    if resume == "none" and candidates:
        raise UserError(
            f"checkpoint.resume = none, but {folder} already holds checkpoints; "
            "choose another run.name, or checkpoint.resume=auto to continue"
        )
    warnings: list[str] = []
    whole: list[Path] = []  # newest first
    for candidate in reversed(candidates):
        if len(whole) > (ends.steps_back if ends else 0):
            break
        damage = find_damage(candidate, ranks)
        if damage is None:
            whole.append(candidate)
        else:
            warnings.append(f"checkpoint {candidate} is skipped: {damage}")
    if whole:
        return whole[-1], [*warnings, *(ends.warnings(whole) if ends else [])]
    if warnings:
        raise UserError(
            *warnings, f"{folder}: every checkpoint is damaged; choose another run.name to start from scratch"
        )
    if resume in ("auto", "none"):
        return None, warnings
    damage = find_damage(Path(resume), ranks)
    if damage:
        raise UserError(f"checkpoint.resume = {resume!r}: {damage}")
    return Path(resume), warnings


def find_damage(checkpoint: Path, ranks: Ranks) -> str | None:
    """What is wrong with a checkpoint, and in which file; None if it is whole (engine/manifest.py).

    Only rank 0 checks names and sizes: ranks that look at a shared folder at different moments could disagree
    about them. The ranks share the work of reading.
    """
    try:
        expected = on_first_rank(ranks, lambda: read_manifest(checkpoint))
    except UserError as error:
        return str(error)

    def fault(name: str) -> str | None:
        return find_fault(checkpoint / name, expected[name], sum_of(checkpoint / name))

    faults = _each_on_one_rank(sorted(expected), ranks, fault)
    return next((each for each in faults.values() if each is not None), None)


def check_continues(state: TrainingState, checkpoint: Path, config: RunConfig) -> None:
    """Refuse to resume with another seed, batch size or LoRA section, or other samples left out until then.

    Raises:
        UserError: naming the config's value and the checkpoint's.
    """
    problems = []
    for name, now, then in (
        ("run.seed", config.run.seed, state.seed),
        ("train.global_batch_size", config.train.global_batch_size, state.global_batch_size),
        ("model.lora", config.model.lora.model_dump() if config.model.lora else None, state.lora),
    ):
        if now != then:
            problems.append(
                f"{name} = {now}, but checkpoint {checkpoint} was trained with {then}; use that value, "
                "or choose another run.name to start from scratch"
            )
    skip, skip_then = config.data.skip, state.config["data"].get("skip", []) if state.config else []
    passed, passed_then = (
        ranges_before(state.consumed_samples, merged_ranges(ranges)) for ranges in (skip, skip_then)
    )
    if passed != passed_then:
        problems.append(
            f"data.skip = {skip}, but checkpoint {checkpoint} has consumed {state.consumed_samples} samples "
            f"with {skip_then}; change only what comes later, or resume from an earlier checkpoint"
        )
    if problems:
        raise UserError(*problems)


def check_data(state: TrainingState, checkpoint: Path, source: SampleSource) -> None:
    """Refuse to resume with other data.

    Raises:
        UserError: naming the config's data and the checkpoint's.
    """
    if state.data_fingerprint != source.fingerprint:
        raise UserError(
            f"data: {source.description} is not what checkpoint {checkpoint} was trained on: "
            f"{state.data_description}; choose another run.name to start from scratch"
        )


def _begin(target: Path, num_bytes: int) -> Path:
    """Remove what interrupted saves have left, see that there is room, and make the unfinished folder."""
    with disk_errors(target):
        for leftover in leftover_checkpoints(target.parent):
            discard(leftover)
        unfinished = make_unfinished(target)
        try:
            check_room(target, num_bytes)
        except UserError:
            unfinished.rmdir()
            raise
    return unfinished


def _write_own_files(
    unfinished: Path, state: TrainingState, write_model: Callable[[Path], None]
) -> list[str]:
    """Write what is not DeepSpeed's. Returns the names of all files."""
    with disk_errors(unfinished):
        write_model(unfinished / MODEL_FOLDER)
        state.write(unfinished)
        return file_names(unfinished)


def _publish(unfinished: Path, target: Path, sums: dict[str, Sum], options: CheckpointSection) -> None:
    with disk_errors(unfinished):
        write_manifest(unfinished, sums)
    # The run passed over checkpoints of this step or a later one when it resumed.
    for passed_over in published_checkpoints(target.parent):
        if passed_over.name >= target.name:
            remove_published(passed_over)
    publish(unfinished, target, files_are_synced=True)
    for old in retired(published_checkpoints(target.parent), options):
        remove_published(old)


def _each_on_one_rank(names: list[str], ranks: Ranks, work: Callable[[str], T]) -> dict[str, T]:
    """The (picklable) result of `work` for every name, each done by one rank. Every rank gets all."""
    own = names[ranks.rank :: ranks.world_size]
    mine = on_every_rank(ranks, lambda: {name: work(name) for name in own})
    parts: list[Any] = [None] * ranks.world_size
    dist.all_gather_object(parts, mine)
    found = {name: result for part in parts for name, result in part.items()}
    return {name: found[name] for name in names}


def _synced_sum(path: Path) -> Sum:
    with disk_errors(path):
        fsync(path)
        return sum_of(path)
