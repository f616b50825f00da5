"""The layout of a run folder."""

from pathlib import Path

from mdmscale.system.errors import UserError

EXPORT_FOLDER = "hf"  # the trained model, adapters merged
ADAPTER_FOLDER = "adapter"  # the adapters of model.lora by themselves
CHECKPOINTS = "checkpoints"
ENGINE_FOLDER = "engine"


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
