"""A model folder, a run, or one of its checkpoints, opened as a model."""

from dataclasses import dataclass
from pathlib import Path

from mdmscale.system.errors import UserError
from mdmscale.system.run_folder import ADAPTER_FOLDER, RunFolder, kind_of, step_of
from mdmscale.weights.adapters import Adapter, read_adapter, split_adapter
from mdmscale.weights.tensor_source import TensorSource
from mdmscale.weights.weight_files import WeightFolder


@dataclass(frozen=True)
class OpenedModel:
    """A model of mdmscale: where its config and tokenizer are, its weights, and an adapter beside them."""

    folder: Path
    weights: TensorSource
    adapter: Adapter | None


def open_model(path: Path, step: int | None) -> OpenedModel:
    """Open a model, of a run the checkpoint of `step`, else its hf/, else its newest checkpoint.

    Raises:
        UserError: naming what is missing or damaged.
    """
    kind = kind_of(path)
    if step is not None and kind != "run":
        raise UserError(f"--checkpoint {step}: {path} is a {kind}, and only a run folder has checkpoints")
    if kind == "model":
        return OpenedModel(path, WeightFolder(path), read_adapter(path / ADAPTER_FOLDER))
    if kind == "checkpoint":
        return _open_checkpoint(path)
    run = RunFolder(path)
    if step is None and run.has_export:
        return OpenedModel(run.export, WeightFolder(run.export), None)  # a run's adapters are merged there
    return _open_checkpoint(_find_checkpoint(run, step))


def _find_checkpoint(run: RunFolder, step: int | None) -> Path:
    there = run.published_checkpoints()
    if step is None:
        if not there:
            raise UserError(f"{run.path}: has neither an exported model nor a checkpoint yet")
        return there[-1]
    checkpoint = run.checkpoint(step)
    if checkpoint not in there:
        steps = ", ".join(str(step_of(path)) for path in there) or "none"
        raise UserError(f"--checkpoint {step}: {run.path} has no checkpoint of that step; there are: {steps}")
    return checkpoint


def _open_checkpoint(folder: Path) -> OpenedModel:
    # Imported here, as only this needs what a trained run brings with it.
    from mdmscale.engine.checkpoint_weights import DeepSpeedCheckpoint

    checkpoint = DeepSpeedCheckpoint(folder)
    if checkpoint.adapter is None:
        return OpenedModel(checkpoint.model_folder, checkpoint, None)
    return OpenedModel(checkpoint.model_folder, *split_adapter(checkpoint, checkpoint.adapter))
