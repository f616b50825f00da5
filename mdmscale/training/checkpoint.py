"""Checkpoints: saved, found again, and checked against the run that resumes.

A checkpoint is complete or absent. It is written to an unfinished folder, verified by a manifest and
published by one rename. system/run_folder.py lists its files.

DeepSpeed's own `latest` file is not used: it is written without a barrier, so a kill at the wrong moment
leaves it naming a damaged checkpoint. Here the latest checkpoint is the newest folder that has its final name
and matches its manifest.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist

from mdmscale.config.run import RunConfig
from mdmscale.data.skipping import merged_ranges, ranges_before
from mdmscale.data.source import SampleSource
from mdmscale.engine.engine import Engine
from mdmscale.parallel.collectives import on_every_rank, on_first_rank
from mdmscale.parallel.ranks import Ranks
from mdmscale.system.disk import check_room, disk_errors
from mdmscale.system.errors import UserError
from mdmscale.system.files import fsync
from mdmscale.system.folders import make_unfinished, publish
from mdmscale.system.run_folder import (
    MANIFEST_FILE,
    MODEL_FOLDER,
    published_checkpoints,
    step_name,
)
from mdmscale.training.state import TrainingState


def save(
    engine: Engine,
    state: TrainingState,
    write_model: Callable[[Path], None],
    folder: Path,
    keep: int,
    ranks: Ranks,
) -> Path:
    """Publish a checkpoint of `engine` in `folder`; keep the newest `keep` checkpoints (0: all).

    Every rank calls this. Rank 0 calls `write_model`, which fills the model/ folder. A kill at any moment
    leaves either the complete checkpoint or none of that name.

    Raises:
        UserError: on every rank, if the disk has too little room or fails. Older checkpoints stay then.
    """
    target = folder / step_name(state.step)
    unfinished = on_first_rank(ranks, lambda: _begin(target, engine.checkpoint_bytes()))
    try:
        on_every_rank(ranks, lambda: engine.save(unfinished))
        names = on_first_rank(ranks, lambda: _write_own_files(unfinished, state, write_model))
        digests = _digests(unfinished, names, ranks, sync=True)
        on_first_rank(ranks, lambda: _publish(unfinished, target, digests, keep))
    except UserError:
        if ranks.is_first:
            shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return target


def find_resume(resume: str, folder: Path, ranks: Ranks) -> tuple[Path | None, list[str]]:
    """The checkpoint to resume from (None: start from scratch), and warnings about damaged ones.

    A run that has checkpoints in `folder` resumes from the newest undamaged one. Without any, it resumes from
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
    for candidate in reversed(candidates):
        damage = find_damage(candidate, ranks)
        if damage is None:
            return candidate, warnings
        warnings.append(f"checkpoint {candidate} is skipped: {damage}")
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
    """What is wrong with a checkpoint, and in which file; None if every file matches the manifest.

    Only rank 0 checks names and sizes: ranks that look at a shared folder at different moments could disagree
    about them. The ranks share the work of hashing.
    """
    damage, expected = on_first_rank(ranks, lambda: _read_manifest(checkpoint))
    if damage is not None:
        return damage
    digests = _digests(checkpoint, sorted(expected), ranks)
    damaged = [name for name in sorted(expected) if list(digests[name]) != expected[name]]
    return f"{checkpoint / damaged[0]} does not match its sha256" if damaged else None


def _read_manifest(checkpoint: Path) -> tuple[str | None, dict[str, list[Any]]]:
    """The damage that names and sizes show (None: none), and the manifest: {name: [size, sha256]}."""
    manifest = checkpoint / MANIFEST_FILE
    if not manifest.is_file():
        return f"this is no checkpoint ({manifest} is missing)", {}
    try:
        files = json.loads(manifest.read_text())["files"]
        expected = {name: [size, digest] for name, (size, digest) in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{manifest} is damaged", {}
    for name, (size, _) in expected.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{path} is missing", {}
        if path.stat().st_size != size:
            return f"{path} has {path.stat().st_size} bytes instead of {size}", {}
    return None, expected


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
        return _file_names(unfinished)


def _publish(unfinished: Path, target: Path, digests: dict[str, tuple[int, str]], keep: int) -> None:
    manifest = unfinished / MANIFEST_FILE
    with disk_errors(manifest):
        manifest.write_text(json.dumps({"files": digests}, indent=1))
        fsync(manifest)
    # Checkpoints of this step or a later one are damaged: the run skipped them when it resumed.
    for damaged in published_checkpoints(target.parent):
        if damaged.name >= target.name:
            shutil.rmtree(damaged)
    publish(unfinished, target, files_are_synced=True)
    for old in published_checkpoints(target.parent)[:-keep] if keep else []:
        shutil.rmtree(old)


def _file_names(checkpoint: Path) -> list[str]:
    return sorted(str(path.relative_to(checkpoint)) for path in checkpoint.rglob("*") if path.is_file())


def _digests(
    checkpoint: Path, names: list[str], ranks: Ranks, sync: bool = False
) -> dict[str, tuple[int, str]]:
    """(size, sha256) of every named file. One rank hashes each file, and syncs it to disk if `sync`."""
    own = names[ranks.rank :: ranks.world_size]
    mine = on_every_rank(ranks, lambda: {name: _digest(checkpoint / name, sync) for name in own})
    parts: list[Any] = [None] * ranks.world_size
    dist.all_gather_object(parts, mine)
    return {name: digest for part in parts for name, digest in part.items()}


def _digest(path: Path, sync: bool) -> tuple[int, str]:
    with disk_errors(path), path.open("rb") as file:
        if sync:
            fsync(path)
        return path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()
