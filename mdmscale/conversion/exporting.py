"""Export a model folder, run or checkpoint of mdmscale to a folder that other code reads."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from mdmscale.conversion import dream, llada
from mdmscale.conversion.destination import check_destination
from mdmscale.conversion.model_folder import (
    expected_shapes,
    main_dtype,
    own_weights,
    read_hf_config,
    save_hf_config,
)
from mdmscale.conversion.stored_model import StoredModel, open_stored_model
from mdmscale.conversion.tokenizer_files import copy_tokenizer, drop_tokens_from, open_copied
from mdmscale.models.precision import DTYPES
from mdmscale.models.token_ids import settle_ids, stated_ids
from mdmscale.system.errors import UserError
from mdmscale.system.files import write_object
from mdmscale.system.folders import published_folder
from mdmscale.system.run_folder import ADAPTER_FOLDER
from mdmscale.system.sums import write_sums
from mdmscale.weights.adapters import MergedSource
from mdmscale.weights.progress import weights_progress
from mdmscale.weights.tensor_source import TensorSource
from mdmscale.weights.tensor_views import EMBEDDINGS, CastSource, Part, RemappedSource
from mdmscale.weights.weight_files import check_expected, check_floating
from mdmscale.weights.weight_writer import MAX_SHARD_BYTES, write_weights


@dataclass(frozen=True)
class ExportOptions:
    """The options of `convert export`, as the user gives them."""

    to: str
    checkpoint: int | None = None
    averaged: bool = False
    lora: str = "merge"
    dtype: str = "keep"
    overwrite: bool = False
    max_shard_bytes: int = MAX_SHARD_BYTES


def export_folder(source: Path, destination: Path, options: ExportOptions) -> dict[str, Any]:
    """Convert `source` to the folder `destination`, which appears only when it is complete.

    Returns:
        a summary for the user.

    Raises:
        UserError: naming the file or option at fault.
    """
    check_destination(source, destination, options.overwrite)
    stored = open_stored_model(
        source, options.checkpoint, keeps_adapter=options.lora == "keep", averaged=options.averaged
    )
    config = read_hf_config(stored.folder)
    mdm = _mdm_section(config, stored.folder)
    _check_target(options, stored, config)
    weights = _plain_weights(stored, config, options)
    weights = _in_format(options.to, weights, config)
    infos = weights.tensors()
    with published_folder(destination, sum(info.num_bytes for info in infos.values())) as folder:
        copy_tokenizer(stored.folder, folder)
        notices = _settle_special_tokens(config, mdm["mask_token_id"], stored.folder, folder)
        foreign_config = _foreign_config(options.to, config, mdm["mask_token_id"])
        if foreign_config is not None:
            dtype = str(main_dtype(infos)).removeprefix("torch.")
            write_object(folder / "config.json", {**foreign_config, "torch_dtype": dtype})
        else:
            save_hf_config(config, infos, folder)
        if options.to == "arm":
            drop_tokens_from(folder, config.vocab_size)
        with weights_progress(weights, "exporting") as advance:
            write_weights(weights, folder, advance, options.max_shard_bytes)
        if stored.adapter is not None and options.lora == "keep":
            stored.adapter.save(folder / ADAPTER_FOLDER)
        write_sums(folder)
    return {
        "format": options.to,
        "weights from": str(stored.folder),
        "parameters": sum(info.num_elements for info in infos.values()),
        "adapter": "none" if stored.adapter is None else {"merge": "merged", "keep": "kept"}[options.lora],
        **_notes(options.to, mdm),
        "notes": notices,
    }


def _mdm_section(config: PretrainedConfig, folder: Path) -> dict[str, Any]:
    mdm = getattr(config, "mdm", None)
    if not isinstance(mdm, dict) or type(mdm.get("mask_token_id")) is not int:
        raise UserError(
            f"{folder / 'config.json'}: has no mdm section with a mask_token_id, so it is not an "
            "mdmscale model; import it first"
        )
    return mdm


def _check_target(options: ExportOptions, stored: StoredModel, config: PretrainedConfig) -> None:
    """Refuse what the format cannot express, all problems at once."""
    where, shift = stored.folder, config.mdm.get("logit_shift", False)
    problems = []
    if options.to in ("llada", "dream") and config.mdm.get("objective") == "ar":
        problems.append(f"{where} is autoregressive (diffusion.objective: ar), but its code opens an MDM")
    if options.to == "llada":
        if shift:
            problems.append(
                f"{where} predicts position i from i - 1 (logit_shift), but LLaDA's code does not"
            )
        problems += [f"{where}: {problem}" for problem in llada.unexpressed(config)]
    if options.to == "dream":
        if not shift:
            problems.append(
                f"{where} predicts each position from itself (no logit_shift), but Dream's code does not"
            )
        problems += [f"{where}: {problem}" for problem in dream.unexpressed(config)]
    refusals = [f"--to {options.to}: {problem}; give --to hf" for problem in problems]
    if options.lora == "keep":
        if stored.adapter is None:
            refusals.append(
                f"--lora keep: {where} has no adapter apart from its weights; leave --lora out, or give the "
                "folder of a run that has trained one"
            )
        elif options.to == "llada":
            refusals.append(
                "--lora keep: an adapter has names of Hugging Face modules, not LLaDA's; give --lora merge"
            )
    if refusals:
        raise UserError(*refusals)


def _plain_weights(stored: StoredModel, config: PretrainedConfig, options: ExportOptions) -> TensorSource:
    """The weights under Hugging Face names, checked, in the chosen precision and with the adapter merged."""
    check_floating(stored.weights.tensors(), stored.folder)
    weights = own_weights(stored.weights, config)
    check_expected(weights, expected_shapes(config, stored.folder), stored.folder)
    if stored.adapter is not None and options.lora == "merge":
        weights = MergedSource(weights, stored.adapter)
    return weights if options.dtype == "keep" else CastSource(weights, DTYPES[options.dtype])


def _settle_special_tokens(
    config: PretrainedConfig, mask_token_id: int, source: Path, written: Path
) -> list[str]:
    """Set EOS, BOS and padding of the config to those of the copied tokenizer and those that `source` states.

    Returns:
        what a user should know about them.
    """
    ids, notices = settle_ids(stated_ids(source), open_copied(written), config.vocab_size, mask_token_id)
    ids.write(config)
    return notices


def _in_format(to: str, weights: TensorSource, config: PretrainedConfig) -> TensorSource:
    """The weights under the names of the format `to`. For `arm`, `config` becomes causal again."""
    infos = weights.tensors()
    match to:
        case "llada":
            return RemappedSource(weights, llada.llada_parts(infos))
        case "arm":
            _make_causal(config)
            rows = {name: Part(name, 0, config.vocab_size) for name in infos.keys() & EMBEDDINGS}
            return RemappedSource(weights, {name: rows.get(name, Part(name)) for name in infos})
    return weights


def _foreign_config(to: str, config: PretrainedConfig, mask_token_id: int) -> dict[str, Any] | None:
    """The content of config.json for a format's own code; None where the Hugging Face config is right."""
    match to:
        case "llada":
            return llada.llada_config(config, mask_token_id)
        case "dream":
            return dream.dream_config(config, mask_token_id)
    return None


def _make_causal(config: PretrainedConfig) -> None:
    """Restore the config values that the import of an autoregressive model replaced."""
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
            return {"note": "without logit_shift, the head predicts each position itself, not the next token"}
    return {}
