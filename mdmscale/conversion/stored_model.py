"""Open a model of mdmscale for conversion: its weights stay on disk and are read tensor by tensor.

To compute with a model, see models/opening.py.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from mdmscale.models.folder_checks import check_not_adapter_alone
from mdmscale.system.errors import UserError
from mdmscale.system.run_folder import ADAPTER_FOLDER, RunFolder, is_model, kind_of, step_of
from mdmscale.weights.adapters import Adapter, read_adapter, split_adapter
from mdmscale.weights.tensor_source import TensorSource
from mdmscale.weights.weight_files import WeightFolder


@dataclass(frozen=True)
class StoredModel:
    """A model on disk.

    Attributes:
        folder: holds its config and tokenizer.
        weights: the tensors, read one at a time.
        adapter: a LoRA adapter that is not merged into the weights.
    """

    folder: Path
    weights: TensorSource
    adapter: Adapter | None


def open_stored_model(
    path: Path, step: int | None, keeps_adapter: bool = False, averaged: bool = False
) -> StoredModel:
    """Open a model folder, a checkpoint or a run.

    Of a run, open the checkpoint of `step`. Where `step` is None, open its hf/, in which adapters are merged;
    to have them apart, the checkpoint that hf/ was made from; where it has no hf/ yet, its newest checkpoint.

    Args:
        keeps_adapter: open base model and adapter apart.
        averaged: open the average of the weights (train.ema_decay), in hf_ema/ instead of hf/.

    Raises:
        UserError: naming what is missing or damaged.
    """
    check_not_adapter_alone(path)
    kind = kind_of(path)
    if step is not None and kind != "run":
        raise UserError(f"--checkpoint {step}: {path} is a {kind}, and only a run folder has checkpoints")
    if kind == "model":
        if averaged:
            raise UserError(f"--averaged: {path} is a model folder; give a run folder or a checkpoint")
        return StoredModel(path, WeightFolder(path), _adapter_of(path))
    if kind == "checkpoint":
        return _open_checkpoint(path, averaged)
    run = RunFolder(path)
    export = run.averaged_export if averaged else run.export
    if step is None and is_model(export):
        adapter = read_adapter(run.averaged_adapter if averaged else run.adapter) if keeps_adapter else None
        if adapter is not None:
            return _checkpoint_with(adapter, run, averaged)
        return StoredModel(export, WeightFolder(export), None)
    return _open_checkpoint(_find_checkpoint(run, step), averaged)


def _adapter_of(folder: Path) -> Adapter | None:
    """The adapter of a model folder: in adapter/, where an export keeps it, or beside the weights."""
    inside, beside = read_adapter(folder / ADAPTER_FOLDER), read_adapter(folder)
    if inside is not None and beside is not None:
        raise UserError(f"{folder}: holds one adapter beside its weights and one in adapter/; remove one")
    return inside if beside is None else beside


def _checkpoint_with(adapter: Adapter, run: RunFolder, averaged: bool) -> StoredModel:
    """The checkpoint whose adapter is the one that the run has exported, bit for bit."""
    checkpoints = run.published_checkpoints()
    for checkpoint in reversed(checkpoints):
        stored = _open_checkpoint(checkpoint, averaged)
        if stored.adapter is not None and _are_equal(stored.adapter, adapter):
            return stored
    steps = ", ".join(str(step_of(each)) for each in checkpoints) or "none"
    raise UserError(
        f"--lora keep: no checkpoint of {run.path} holds the base model of its adapter/; give --checkpoint "
        f"STEP (there are: {steps}), or use adapter/ with {adapter.config.get('base_model_name_or_path')!r}"
    )


def _are_equal(left: Adapter, right: Adapter) -> bool:
    return left.weights.tensors() == right.weights.tensors() and all(
        torch.equal(left.weights.read(name), right.weights.read(name)) for name in left.weights.tensors()
    )


def _find_checkpoint(run: RunFolder, step: int | None) -> Path:
    checkpoints = run.published_checkpoints()
    if step is None:
        if not checkpoints:
            raise UserError(f"{run.path}: has neither an exported model nor a checkpoint yet")
        return checkpoints[-1]
    checkpoint = run.checkpoint(step)
    if checkpoint not in checkpoints:
        steps = ", ".join(str(step_of(each)) for each in checkpoints) or "none"
        raise UserError(f"--checkpoint {step}: {run.path} has no checkpoint of that step; there are: {steps}")
    return checkpoint


def _open_checkpoint(folder: Path, averaged: bool) -> StoredModel:
    # Lazy imports, as only checkpoints need the engine folder's code.
    from mdmscale.engine.checkpoint_weights import DeepSpeedCheckpoint
    from mdmscale.engine.manifest import check_whole

    check_whole(folder)
    checkpoint = DeepSpeedCheckpoint(folder, averaged)
    if checkpoint.adapter is None:
        return StoredModel(checkpoint.model_folder, checkpoint, None)
    return StoredModel(checkpoint.model_folder, *split_adapter(checkpoint, checkpoint.adapter))
