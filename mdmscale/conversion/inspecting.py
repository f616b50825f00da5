"""Say what a folder holds, without loading its weights. What has sums is checked against them."""

import math
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from mdmscale.conversion.families import identify
from mdmscale.conversion.gguf_file import find_gguf
from mdmscale.conversion.importing import SHIFTED
from mdmscale.conversion.model_folder import (
    all_dtypes,
    expected_shapes,
    own_weights,
    read_hf_config,
    read_values,
)
from mdmscale.conversion.stored_model import open_stored_model
from mdmscale.conversion.translation import translate
from mdmscale.engine.manifest import check_whole
from mdmscale.models.folder_checks import check_not_adapter_alone
from mdmscale.system.run_folder import (
    MODEL_FOLDER,
    RunFolder,
    is_model,
    kind_of,
    step_of,
)
from mdmscale.training.state import TrainingState
from mdmscale.weights.adapters import read_adapter
from mdmscale.weights.tensor_source import TensorInfo


def inspect_folder(path: Path) -> dict[str, Any]:
    """Summarise a model folder, GGUF file, run or checkpoint. The keys are in the order to show them in.

    Raises:
        UserError: where the path is none of them, is damaged, or holds an unsupported model.
    """
    check_not_adapter_alone(path)
    if find_gguf(path) is not None:
        return _inspect_foreign(path)
    match kind_of(path):
        case "model":
            return inspect_model(path)
        case "checkpoint":
            return inspect_checkpoint(path)
        case _:
            return inspect_run(path)


def inspect_model(folder: Path) -> dict[str, Any]:
    """Family, sizes, mask token and logit shift of a model folder."""
    values = read_values(folder)
    if identify(values, folder) != "mdmscale":
        return _inspect_foreign(folder)
    mdm = {name: values["mdm"].get(name) for name in ("mask_token_id", "logit_shift", "source")}
    mdm["objective"] = values["mdm"].get("objective", "full")
    stored = open_stored_model(folder, None)
    config = read_hf_config(folder)
    weights = own_weights(stored.weights, config)
    return {
        "kind": "model",
        "family": "mdmscale",
        **mdm,
        "adapter": stored.adapter is not None,
        **_sizes(config, weights.tensors()),
    }


def _inspect_foreign(source: Path) -> dict[str, Any]:
    model = translate(source)
    # The shift of an autoregressive model is chosen when it is imported.
    shift = None if model.family == "arm" else SHIFTED[model.family]
    mdm = {"mask_token_id": model.mask_token_id, "logit_shift": shift, "adapter": model.has_adapter}
    sizes = _sizes(model.config, model.weights.tensors())
    facts = {**model.facts, "notes": model.notes}
    return {"kind": "model", "family": model.family, **mdm, **sizes, **facts}


def inspect_checkpoint(folder: Path) -> dict[str, Any]:
    """Step, samples and tokens seen, ZeRO stage and ranks of a checkpoint, which must be whole."""
    check_whole(folder)
    state = TrainingState.read(folder)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    names = ("step", "consumed_samples", "consumed_tokens", "seed", "global_batch_size", "data_description")
    position = {name: getattr(state, name) for name in names}
    layout = {name: getattr(state.engine, name) for name in ("world_size", "zero_stage", "tensor", "dtype")}
    model = folder / MODEL_FOLDER
    return {
        "kind": "checkpoint",
        "family": "DeepSpeed checkpoint",
        **(_described(model) if is_model(model) else {}),
        "bytes": size,
        **position,
        "scores": state.scores,
        **layout,
        "ema_decay": (state.config or {}).get("train", {}).get("ema_decay"),  # of the average of the weights
        "components": sorted(state.components),
    }


def inspect_run(folder: Path) -> dict[str, Any]:
    """The checkpoints of a run, its newest, and its exported model."""
    run = RunFolder(folder)
    checkpoints = run.published_checkpoints()
    model = inspect_model(run.export) if run.has_export else None
    return {
        "kind": "run",
        "checkpoints": [step_of(checkpoint) for checkpoint in checkpoints],
        "adapter": read_adapter(run.adapter) is not None,
        "newest_checkpoint": inspect_checkpoint(checkpoints[-1]) if checkpoints else None,
        "model": model,
    }


def _described(model: Path) -> dict[str, Any]:
    """What the config.json in a checkpoint says about its weights."""
    config = read_hf_config(model)
    mdm = getattr(config, "mdm", {})
    return {
        "mask_token_id": mdm.get("mask_token_id"),
        "logit_shift": mdm.get("logit_shift"),
        "architecture": config.model_type,
        "parameters": sum(map(math.prod, expected_shapes(config, model).values())),
        "vocab_size": config.vocab_size,
    }


def _sizes(config: PretrainedConfig, infos: dict[str, TensorInfo]) -> dict[str, Any]:
    return {
        "architecture": config.model_type,
        "parameters": sum(info.num_elements for info in infos.values()),
        "bytes": sum(info.num_bytes for info in infos.values()),
        "dtype": all_dtypes(infos),
        "vocab_size": config.vocab_size,
        "num_layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "max_length": config.max_position_embeddings,
        "tied": bool(config.tie_word_embeddings),
    }
