"""From mdmscale's folders, runs and checkpoints to the folders that other code reads."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from mdmscale.conversion import dream, llada
from mdmscale.conversion.destination import check_destination
from mdmscale.conversion.model_folder import (
    expected_shapes,
    main_dtype,
    read_hf_config,
    save_hf_config,
    weight_parts,
)
from mdmscale.conversion.place import OpenedModel, open_model
from mdmscale.conversion.tokenizer_files import copy_tokenizer, drop_tokens_from
from mdmscale.models.backbone import DTYPES
from mdmscale.system.errors import UserError
from mdmscale.system.files import write_object
from mdmscale.system.folders import published_folder
from mdmscale.system.run_folder import ADAPTER_FOLDER
from mdmscale.weights.adapters import MergedSource
from mdmscale.weights.progress import weights_progress
from mdmscale.weights.tensor_source import TensorSource
from mdmscale.weights.tensor_views import EMBEDDINGS, CastSource, Part, RemappedSource
from mdmscale.weights.weight_files import check_expected
from mdmscale.weights.weight_writer import MAX_SHARD_BYTES, write_weights


@dataclass(frozen=True)
class ExportOptions:
    """The command's choices, as typed."""

    to: str
    checkpoint: int | None = None
    lora: str = "merge"
    dtype: str = "keep"
    overwrite: bool = False
    max_shard_bytes: int = MAX_SHARD_BYTES


def export_model(source: Path, destination: Path, options: ExportOptions) -> dict[str, Any]:
    """Convert `source` to the folder `destination`, which appears when it is complete.

    Returns:
        what was done, for the user to read.

    Raises:
        UserError: naming the file or option at fault.
    """
    check_destination(source, destination, options.overwrite)
    opened = open_model(source, options.checkpoint)
    config = read_hf_config(opened.folder)
    mdm = _facts(config, opened.folder)
    _check_target(options, opened, mdm)
    weights = _plain_weights(opened, config, options)
    weights, foreign_config = _in_layout(options.to, weights, config, opened.folder)
    infos = weights.tensors()
    with published_folder(destination, sum(info.num_bytes for info in infos.values())) as folder:
        copy_tokenizer(opened.folder, folder)
        if foreign_config is not None:
            dtype = str(main_dtype(infos)).removeprefix("torch.")
            write_object(folder / "config.json", {**foreign_config, "torch_dtype": dtype})
        else:
            save_hf_config(config, infos, folder)
        if options.to == "arm":
            drop_tokens_from(folder, config.vocab_size)
        with weights_progress(weights, "exporting") as advance:
            write_weights(weights, folder, advance, options.max_shard_bytes)
        if opened.adapter is not None and options.lora == "keep":
            opened.adapter.save(folder / ADAPTER_FOLDER)
    return {
        "layout": options.to,
        "weights from": str(opened.folder),
        "parameters": sum(info.num_elements for info in infos.values()),
        "adapter": "none" if opened.adapter is None else {"merge": "merged", "keep": "kept"}[options.lora],
        **_notes(options.to, mdm),
    }


def _facts(config: PretrainedConfig, folder: Path) -> dict[str, Any]:
    mdm = getattr(config, "mdm", None)
    if not isinstance(mdm, dict) or type(mdm.get("mask_token_id")) is not int:
        raise UserError(
            f"{folder / 'config.json'}: has no mdm section with a mask_token_id, so it is no model of "
            "mdmscale; import it first"
        )
    return mdm


def _check_target(options: ExportOptions, opened: OpenedModel, mdm: dict[str, Any]) -> None:
    shift = mdm.get("logit_shift", False)
    if options.to == "llada" and shift:
        raise UserError(
            f"--to llada: {opened.folder} predicts position i from i - 1 (logit_shift), and LLaDA's code "
            "does not; give --to hf"
        )
    if options.to == "dream" and not shift:
        raise UserError(
            f"--to dream: {opened.folder} predicts each position from itself (no logit_shift), and Dream's "
            "code does not; give --to hf"
        )
    if options.to == "llada" and opened.adapter is not None and options.lora == "keep":
        raise UserError("--lora keep: an adapter names Hugging Face modules, not LLaDA's; give --lora merge")


def _plain_weights(opened: OpenedModel, config: PretrainedConfig, options: ExportOptions) -> TensorSource:
    """The weights under Hugging Face names: checked, in the precision asked for, an adapter merged if so."""
    weights: TensorSource = opened.weights
    weights = RemappedSource(weights, weight_parts(weights.tensors(), config))
    check_expected(weights, expected_shapes(config, opened.folder), opened.folder)
    if opened.adapter is not None and options.lora == "merge":
        weights = MergedSource(weights, opened.adapter)
    return weights if options.dtype == "keep" else CastSource(weights, DTYPES[options.dtype])


def _in_layout(
    to: str, weights: TensorSource, config: PretrainedConfig, where: Path
) -> tuple[TensorSource, dict[str, Any] | None]:
    """The weights as `to` has them, with the config of its own code, or None where `config` is that."""
    infos, mdm = weights.tensors(), config.mdm
    match to:
        case "llada":
            content = llada.llada_config(config, mdm["mask_token_id"], where)
            return RemappedSource(weights, llada.llada_parts(infos)), content
        case "dream":
            return weights, dream.dream_config(config, mdm["mask_token_id"], where)
        case "arm":
            _make_causal(config)
            rows = {name: Part(name, 0, config.vocab_size) for name in infos.keys() & EMBEDDINGS}
            return RemappedSource(weights, {name: rows.get(name, Part(name)) for name in infos}), None
    return weights, None


def _make_causal(config: PretrainedConfig) -> None:
    """Put back what the import of an autoregressive model replaced."""
    for name, value in config.mdm.get("arm", {}).items():
        setattr(config, name, value)
    config.is_causal = True
    config.use_cache = True
    del config.mdm


def _notes(to: str, mdm: dict[str, Any]) -> dict[str, str]:
    match to:
        case "llada":
            return {
                "to open it": "put LLaDA's configuration_llada.py and modeling_llada.py beside config.json"
            }
        case "dream":
            return {"to open it": "put Dream's configuration_dream.py, modeling_dream.py and "
                    "generation_utils.py beside config.json"}  # fmt: skip
        case "arm" if not mdm.get("logit_shift"):
            return {"note": "without logit_shift its head predicts each position itself, not the next token"}
    return {}
