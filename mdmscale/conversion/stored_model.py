"""Open a model of mdmscale for conversion: its weights stay on disk and are read tensor by tensor.

To compute with a model, see models/opening.py.
"""

from dataclasses import dataclass
from pathlib import Path

from mdmscale.system.errors import UserError
from mdmscale.system.run_folder import ADAPTER_FOLDER, RunFolder, kind_of, step_of
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


def open_stored_model(path: Path, step: int | None) -> StoredModel:
    """Open a model folder, a checkpoint or a run.

    Of a run, open the checkpoint of `step`; where `step` is None, its hf/, else its newest checkpoint.

    Raises:
        UserError: naming what is missing or damaged.
    """
    kind = kind_of(path)
    if step is not None and kind != "run":
        raise UserError(f"--checkpoint {step}: {path} is a {kind}, and only a run folder has checkpoints")
    if kind == "model":
        return StoredModel(path, WeightFolder(path), read_adapter(path / ADAPTER_FOLDER))
    if kind == "checkpoint":
        return _open_checkpoint(path)
    run = RunFolder(path)
    if step is None and run.has_export:
        return StoredModel(run.export, WeightFolder(run.export), None)  # a run merges its adapters into hf/
    return _open_checkpoint(_find_checkpoint(run, step))


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


def _open_checkpoint(folder: Path) -> StoredModel:
    # A lazy import, as only checkpoints need the engine folder's code.
    from mdmscale.engine.checkpoint_weights import DeepSpeedCheckpoint

    checkpoint = DeepSpeedCheckpoint(folder)
    if checkpoint.adapter is None:
        return StoredModel(checkpoint.model_folder, checkpoint, None)
    return StoredModel(checkpoint.model_folder, *split_adapter(checkpoint, checkpoint.adapter))
