"""Checkpoints that are whole or not there: written aside, verified by a manifest, published by one rename.

    checkpoints/step-00000100/
        engine/          DeepSpeed's files, every rank's shards
        state.json       step, samples, tokens, world size, seed, data, t-sampler
        manifest.json    size and sha256 of every file above

DeepSpeed's own `latest` file is not used: it is written without a barrier, and a kill at the wrong moment
leaves it naming a damaged checkpoint. Here the newest folder that has its final name and passes its manifest
is the latest.
"""

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from mdmscale.config import RunConfig
from mdmscale.data.source import SampleSource
from mdmscale.distributed import Ranks, on_first_rank
from mdmscale.errors import UserError

PREFIX = "step-"
UNFINISHED = ".unfinished-"
ENGINE_FOLDER = "engine"


@dataclass(frozen=True)
class TrainingState:
    """What a run needs to go on, beside what DeepSpeed keeps: a position and facts that must not change."""

    step: int  # optimizer steps taken
    consumed_samples: int
    consumed_tokens: int
    world_size: int
    zero_stage: int
    seed: int
    global_batch_size: int
    data_fingerprint: str
    data_description: str
    density: dict[str, Any]  # the t-sampler's table

    @classmethod
    def read(cls, folder: Path) -> "TrainingState":
        return cls(**json.loads((folder / "state.json").read_text()))


def save(engine: Any, state: TrainingState, folder: Path, keep: int, ranks: Ranks) -> Path:
    """Publish a checkpoint of the DeepSpeed `engine` in `folder`; keep the newest `keep` (0: all).

    Every rank calls it. A kill at any moment leaves either the whole checkpoint or none of that name.
    """
    target = folder / f"{PREFIX}{state.step:08d}"
    unfinished = folder / f"{UNFINISHED}{target.name}"
    on_first_rank(ranks, lambda: _fresh_folder(folder, unfinished))
    engine.save_checkpoint(str(unfinished), tag=ENGINE_FOLDER, save_latest=False)
    if ranks.is_first:
        (unfinished / "state.json").write_text(json.dumps(asdict(state), indent=1))
    dist.barrier()
    digests = _digests(unfinished, ranks, sync=True)
    on_first_rank(ranks, lambda: _publish(unfinished, target, digests, keep))
    return target


def load_engine(engine: Any, checkpoint: Path) -> None:
    """Restore DeepSpeed's model and optimizer from a verified checkpoint."""
    try:
        loaded, _ = engine.load_checkpoint(str(checkpoint), tag=ENGINE_FOLDER)
    except RuntimeError as error:  # load_state_dict on other shapes
        reason = str(error).strip().split("\n")[-1].strip()
        raise UserError(f"{checkpoint}: its weights do not fit this config's model: {reason}") from None
    assert loaded is not None, "DeepSpeed found no engine folder in a checkpoint that passed its manifest"


def find_resume(resume: str, folder: Path, ranks: Ranks) -> tuple[Path | None, list[str]]:
    """The checkpoint that `checkpoint.resume` means (None: start anew), with warnings about damaged ones.

    auto: the newest whole one under `folder`. none: None, and an error if `folder` already holds checkpoints.
    Else a path:
    that checkpoint, which must be whole.
    """
    if resume not in ("auto", "none"):
        damage = find_damage(Path(resume), ranks)
        if damage:
            raise UserError(f"checkpoint.resume = {resume!r}: {damage}")
        return Path(resume), []
    candidates = on_first_rank(ranks, lambda: published(folder))
    if resume == "none":
        if candidates:
            raise UserError(
                f"checkpoint.resume = none, but {folder} already holds checkpoints; "
                "choose another run.name, or checkpoint.resume=auto to go on"
            )
        return None, []
    warnings: list[str] = []
    for candidate in reversed(candidates):
        damage = find_damage(candidate, ranks)
        if damage is None:
            return candidate, warnings
        warnings.append(f"checkpoint {candidate} is passed over: {damage}")
    return None, warnings


def published(folder: Path) -> list[Path]:
    """The checkpoints under their final names, oldest first."""
    return sorted(path for path in folder.glob(f"{PREFIX}*") if path.is_dir())


def find_damage(checkpoint: Path, ranks: Ranks) -> str | None:
    """What is wrong with a checkpoint, naming the file; None if every file is as its manifest says.

    The ranks share the hashing out.
    """
    manifest_file = checkpoint / "manifest.json"
    if not manifest_file.is_file():
        return f"no checkpoint there ({manifest_file} is missing)"
    try:
        expected = json.loads(manifest_file.read_text())["files"]
    except (ValueError, KeyError, TypeError):
        return f"{manifest_file} is damaged"
    missing = [name for name in expected if not (checkpoint / name).is_file()]
    if missing:
        return f"{checkpoint / missing[0]} is missing"
    for name, (size, _) in expected.items():
        actual = (checkpoint / name).stat().st_size
        if actual != size:
            return f"{checkpoint / name} has {actual} bytes instead of {size}"
    digests = _digests(checkpoint, ranks)
    damaged = [name for name in sorted(expected) if list(digests[name]) != expected[name]]
    return f"{checkpoint / damaged[0]} does not match its sha256" if damaged else None


def check_continues(state: TrainingState, checkpoint: Path, config: RunConfig, source: SampleSource) -> None:
    """Refuse to continue with another seed, batch size or data: order and noise would silently change.

    Raises:
        UserError: naming both.
    """
    problems = []
    if state.seed != config.run.seed:
        problems.append(
            f"run.seed = {config.run.seed}, but checkpoint {checkpoint} was trained with seed {state.seed}"
        )
    if state.global_batch_size != config.train.global_batch_size:
        problems.append(
            f"train.global_batch_size = {config.train.global_batch_size}, but checkpoint {checkpoint} was "
            f"trained with {state.global_batch_size}"
        )
    if state.data_fingerprint != source.fingerprint:
        problems.append(
            f"data: {source.description} is not what checkpoint {checkpoint} was trained on: "
            f"{state.data_description}"
        )
    if problems:
        raise UserError(*(f"{problem}; choose another run.name to start anew" for problem in problems))


def check_shards(state: TrainingState, checkpoint: Path, world_size: int, zero_stage: int) -> None:
    """Refuse a checkpoint whose optimizer shards do not fit this job's ranks or ZeRO stage."""
    if state.zero_stage != zero_stage:
        raise UserError(
            f"parallel.zero_stage = {zero_stage}, but checkpoint {checkpoint} was saved with stage "
            f"{state.zero_stage}; continue with parallel.zero_stage={state.zero_stage}"
        )
    if zero_stage > 0 and state.world_size != world_size:
        raise UserError(
            f"this job has {world_size} ranks, but checkpoint {checkpoint} holds ZeRO-{zero_stage} shards of "
            f"{state.world_size}; continue on {state.world_size} ranks"
        )


def _fresh_folder(folder: Path, unfinished: Path) -> None:
    for leftover in folder.glob(f"{UNFINISHED}*"):
        shutil.rmtree(leftover)
    unfinished.mkdir(parents=True)


def _publish(unfinished: Path, target: Path, digests: dict[str, tuple[int, str]], keep: int) -> None:
    manifest = unfinished / "manifest.json"
    manifest.write_text(json.dumps({"files": digests}, indent=1))
    for path in (manifest, *(path for path in unfinished.rglob("*") if path.is_dir()), unfinished):
        _fsync(path)
    if target.exists():  # a damaged one of the same step, passed over at resume
        shutil.rmtree(target)
    unfinished.rename(target)
    _fsync(target.parent)
    for old in published(target.parent)[:-keep] if keep else []:
        shutil.rmtree(old)


def _digests(checkpoint: Path, ranks: Ranks, sync: bool = False) -> dict[str, tuple[int, str]]:
    """(size, sha256) of every file but the manifest, each hashed (and synced to disk) by one of the ranks."""
    names = sorted(str(path.relative_to(checkpoint)) for path in checkpoint.rglob("*") if path.is_file())
    hashed = [name for name in names if name != "manifest.json"]
    mine = {name: _digest(checkpoint / name, sync) for name in hashed[ranks.rank :: ranks.world_size]}
    parts: list[Any] = [None] * ranks.world_size
    dist.all_gather_object(parts, mine)
    return {name: digest for part in parts for name, digest in part.items()}


def _digest(path: Path, sync: bool) -> tuple[int, str]:
    if sync:
        _fsync(path)
    with path.open("rb") as file:
        return path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
