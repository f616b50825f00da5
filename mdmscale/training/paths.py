"""Checks of the files and folders that a config names, before torch is imported and anything is written."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from mdmscale.config.run import RunConfig
from mdmscale.data.preparation.formats import holds_records
from mdmscale.data.preparation.sft_files import matching_files
from mdmscale.data.shards import find_prefixes
from mdmscale.data.source import path_list
from mdmscale.models.hub import check_local
from mdmscale.models.tokenizer import check_tokenizer_folder
from mdmscale.system.errors import UserError
from mdmscale.system.run_folder import MODEL_FOLDER, RunFolder, is_model, kind_if_any
from mdmscale.training.task_questions import check_questions


def check_paths(config: RunConfig, writes: bool) -> None:
    """Refuse paths that are not there or hold something else; with `writes`, also an impossible run folder.

    Raises:
        UserError: with every problem.
    """
    checks: list[Callable[[], None]] = [
        lambda: check_data_paths(config),
        lambda: _check_model(config.model.path),
        lambda: _check_tokenizer(config.model.tokenizer),
        lambda: _check_resume(config),
        lambda: check_questions(config),
    ]
    if writes:
        checks.append(lambda: _check_output(config))
    _run_all(checks)


def check_data_paths(config: RunConfig) -> None:
    """Refuse data that are not there or are of another kind.

    Raises:
        UserError: with every problem.
    """
    _run_all([lambda path=path: _check_data(config.data.kind, path) for path in path_list(config.data)])  # type: ignore[misc]


def _run_all(checks: list[Callable[[], None]]) -> None:
    problems: list[str] = []
    for check in checks:
        try:
            check()
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(*problems)


def _check_data(kind: str, path: str) -> None:
    if kind == "sft" and holds_records(Path(path)):
        matching_files(path)
    else:
        find_prefixes([path])


def _check_model(source: str | None) -> None:
    if source is None:
        return
    check_local("model.path", source)
    folder = Path(source)
    if not folder.is_dir() or is_model(folder):
        return  # a hub id, or a model
    match kind_if_any(folder):
        case "run" if RunFolder(folder).has_export:
            mend = f"is a run folder; give the model that it has exported, {RunFolder(folder).export}"
        case "run":
            mend = (
                "is a run folder without an exported model, which is written when training ends; make a "
                "model folder of a checkpoint with tools/convert.py export"
            )
        case "checkpoint":
            mend = (
                "is a checkpoint; make a model folder of it with tools/convert.py export, or give it as "
                "checkpoint.resume to continue its run"
            )
        case _:
            mend = "a folder without config.json; give a Hugging Face model folder"
    raise UserError(f"model.path = {source!r}: {mend}")


def _check_tokenizer(source: str | None) -> None:
    """Refuse a folder without a tokenizer, and say which folder in it has one."""
    if source is None:
        return
    inside = next((each for each in _tokenizers_in(Path(source)) if each.is_dir()), None)
    if inside is not None:
        raise UserError(f"model.tokenizer = {source!r}: is a folder of a run; give {inside}")
    check_tokenizer_folder("model.tokenizer", source)


def _tokenizers_in(folder: Path) -> list[Path]:
    """Where a run or a checkpoint has its tokenizer, the best place first."""
    match kind_if_any(folder):
        case "run":
            run = RunFolder(folder)
            return [run.export, *(each / MODEL_FOLDER for each in reversed(run.published_checkpoints()))]
        case "checkpoint":
            return [folder / MODEL_FOLDER]
    return []


def _check_resume(config: RunConfig) -> None:
    """Refuse a checkpoint.resume that is no checkpoint, and say which folder in or beside it is one.

    A run that has checkpoints of its own continues from them, so the one that it began with may be gone.
    """
    resume = config.checkpoint.resume
    if resume in ("auto", "none") or _run_folder(config).published_checkpoints():
        return
    folder = Path(resume)
    if not folder.exists():
        mend = "no such folder; give a checkpoint, or auto to continue this run's newest"
    elif folder.is_dir() and (inside := _checkpoints_in(folder)):
        mend = f"holds checkpoints and is none; give one of them, such as {inside[-1]}"
    elif folder.is_dir() and is_model(folder):
        mend = "is a model folder; to start from its weights, give it as model.path"
    elif folder.is_dir() and kind_if_any(folder) == "checkpoint":
        return
    else:
        mend = "is no checkpoint; checkpoints are in <run folder>/checkpoints"
    raise UserError(f"checkpoint.resume = {resume!r}: {mend}")


def _checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints of a run folder, or of its checkpoints/ folder, oldest first."""
    inside = RunFolder(folder).published_checkpoints()
    return inside or RunFolder(folder.parent).published_checkpoints() * (folder.name == "checkpoints")


def _run_folder(config: RunConfig) -> RunFolder:
    return RunFolder(Path(config.run.output_dir) / config.run.name)


def _check_output(config: RunConfig) -> None:
    """Refuse a run folder that cannot be created or written to. It tries, and leaves nothing behind."""
    folder = _run_folder(config).path
    label = f"run.output_dir = {config.run.output_dir!r}"
    try:
        nearest = next(each for each in (folder, *folder.absolute().parents) if os.path.lexists(each))
        if not nearest.is_dir():
            raise UserError(f"{label}: {nearest} is not a folder; choose another place for run folders")
        os.rmdir(tempfile.mkdtemp(prefix=".mdmscale-", dir=nearest))
    except OSError as error:
        raise UserError(
            f"{label}: {folder} cannot be written: {error.strerror}; choose another place for run folders"
        ) from None
