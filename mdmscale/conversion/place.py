"""What a path holds, a model folder, a run or one of its checkpoints, and how to read it as a model."""

from dataclasses import dataclass
from pathlib import Path

from mdmscale.system.errors import UserError
from mdmscale.system.run_folder import ADAPTER_FOLDER, ENGINE_FOLDER, EXPORT_FOLDER
from mdmscale.training.checkpoint import PREFIX, published
from mdmscale.weights.adapters import Adapter, read_adapter, split_adapter
from mdmscale.weights.tensor_source import TensorSource
from mdmscale.weights.weight_files import WeightFolder

CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class OpenedModel:
    """A model of mdmscale: where its config and tokenizer are, its weights, and an adapter beside them."""

    folder: Path
    weights: TensorSource
    adapter: Adapter | None


def kind_of(path: Path) -> str:
    """`model`, `run` or `checkpoint`.

    Raises:
        UserError: where it is none of them.
    """
    if not path.is_dir():
        raise UserError(f"{path}: no such folder")
    if (path / "config.json").is_file():
        return "model"
    if (path / "state.json").is_file() or (path / ENGINE_FOLDER).is_dir():
        return "checkpoint"
    if (path / "config.yaml").is_file() or (path / CHECKPOINTS).is_dir():
        return "run"
    raise UserError(
        f"{path}: neither a model folder (no config.json), a run folder (no config.yaml) nor a checkpoint "
        "(no state.json)"
    )


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
    if step is None and (path / EXPORT_FOLDER / "config.json").is_file():
        folder = path / EXPORT_FOLDER
        return OpenedModel(folder, WeightFolder(folder), None)  # a run's adapters are merged there
    return _open_checkpoint(_find_checkpoint(path, step))


def _find_checkpoint(run: Path, step: int | None) -> Path:
    there = published(run / CHECKPOINTS)
    if step is None:
        if not there:
            raise UserError(f"{run}: has neither an exported model nor a checkpoint yet")
        return there[-1]
    checkpoint = run / CHECKPOINTS / f"{PREFIX}{step:08d}"
    if checkpoint not in there:
        steps = ", ".join(str(int(path.name.removeprefix(PREFIX))) for path in there) or "none"
        raise UserError(f"--checkpoint {step}: {run} has no checkpoint of that step; there are: {steps}")
    return checkpoint


def _open_checkpoint(folder: Path) -> OpenedModel:
    # Imported here, as only this needs what a trained run brings with it.
    from mdmscale.engine.checkpoint_weights import DeepSpeedCheckpoint

    checkpoint = DeepSpeedCheckpoint(folder)
    if checkpoint.adapter is None:
        return OpenedModel(checkpoint.model_folder, checkpoint, None)
    return OpenedModel(checkpoint.model_folder, *split_adapter(checkpoint, checkpoint.adapter))
