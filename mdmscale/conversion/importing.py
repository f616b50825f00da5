"""Import a folder of another model family: make it a bidirectional Hugging Face folder with a mask token."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from mdmscale.conversion.destination import check_destination
from mdmscale.conversion.mask_token import MaskToken, choose_mask_token
from mdmscale.conversion.model_folder import (
    all_dtypes,
    save_hf_config,
)
from mdmscale.conversion.tokenizer_files import (
    add_mask_token,
    check_mask_token,
    name_mask_token,
    open_copied,
)
from mdmscale.conversion.translation import translate
from mdmscale.models.backbone import open_windows
from mdmscale.models.precision import DTYPES
from mdmscale.models.shape import ROW_MULTIPLE, round_up
from mdmscale.models.token_ids import settle_ids
from mdmscale.models.tokenizer import num_token_ids
from mdmscale.system.errors import UserError
from mdmscale.system.folders import published_folder
from mdmscale.weights.progress import weights_progress
from mdmscale.weights.tensor_views import CastSource, MeanRowsSource
from mdmscale.weights.weight_writer import MAX_SHARD_BYTES, write_weights

# LLaDA's smallest mask rate; training replaces it with its own.
EPS = 1e-3
SHIFTED = {"arm": True, "llada": False, "dream": True, "diffullama": True}


@dataclass(frozen=True)
class ImportOptions:
    """The options of `convert import`, as the user gives them."""

    family: str = "auto"
    logit_shift: str = "auto"
    mask_token: str | None = None
    dtype: str = "keep"
    overwrite: bool = False
    max_shard_bytes: int = MAX_SHARD_BYTES


def import_folder(source: Path, destination: Path, options: ImportOptions) -> dict[str, Any]:
    """Convert the folder or GGUF file `source` to `destination`, which appears only when it is complete.

    Returns:
        a summary of what was decided, for the user.

    Raises:
        UserError: naming the file or option at fault.
    """
    check_destination(source, destination, options.overwrite)
    model = translate(source, options.family, options.dtype)
    if model.family in ("llada", "dream") and model.mask_token_id is None and options.mask_token is None:
        raise UserError(f"{source / 'config.json'}: has no mask_token_id; give --mask-token")
    config, weights = model.config, model.weights
    if options.dtype != "keep":
        weights = CastSource(weights, DTYPES[options.dtype])
    shift = SHIFTED[model.family] if options.logit_shift == "auto" else options.logit_shift == "on"
    with published_folder(destination, sum(info.num_bytes for info in weights.tensors().values())) as folder:
        model.save_tokenizer(folder)
        tokenizer = open_copied(folder)
        mask = choose_mask_token(options.mask_token, model.mask_token_id, tokenizer, config.vocab_size)
        num_rows, mean_rows = _rows(mask, config.vocab_size)
        if mean_rows:
            num_tokens = config.vocab_size if tokenizer is None else num_token_ids(tokenizer)
            weights = MeanRowsSource(weights, num_rows, mean_rows, min(config.vocab_size, num_tokens))
        _write_tokenizer(folder, mask)
        origin = f"{model.family} {source.resolve().name}"
        mdm = {"mask_token_id": mask.token_id, "logit_shift": shift, "eps": EPS, "source": origin}
        ids, notices = settle_ids(model.token_ids, tokenizer, config.vocab_size, mask.token_id)
        ids.write(config)
        _make_bidirectional(config, num_rows, mdm)
        save_hf_config(config, weights.tensors(), folder)
        with weights_progress(weights, "importing") as advance:
            write_weights(weights, folder, advance, options.max_shard_bytes)
    return {
        "family": model.family,
        "architecture": config.model_type,
        "parameters": sum(info.num_elements for info in weights.tensors().values()),
        "dtype": all_dtypes(weights.tensors()),
        "adapter": "merged" if model.has_adapter else "none",
        "mask token": f"{mask.token_id} {mask.text or ''} ({mask.reason})",
        "eos tokens": " ".join(map(str, ids.eos)) or "none",
        "logit shift": shift,
        "embeddings": config.vocab_size,
        "tokenizer": "copied" if tokenizer else "the source has none; to train, give model.tokenizer",
        **model.facts,
        "notes": [*model.notes, *notices],
    }


def _rows(mask: MaskToken, num_rows: int) -> tuple[int, Iterable[int]]:
    """How many embedding rows the model gets, and which of them become the mean of the others."""
    if mask.token_id < num_rows:
        return num_rows, [mask.token_id] if mask.is_untrained else []
    grown = round_up(mask.token_id + 1, ROW_MULTIPLE)
    return grown, range(num_rows, grown)


def _write_tokenizer(folder: Path, mask: MaskToken) -> None:
    if mask.text is None:
        return
    if mask.is_added:
        add_mask_token(folder, mask.text, mask.token_id)
    else:
        name_mask_token(folder, mask.text)
    check_mask_token(folder, mask.text, mask.token_id)


def _make_bidirectional(config: PretrainedConfig, num_rows: int, mdm: dict[str, Any]) -> None:
    """Make the config a diffusion model's. The replaced values go to mdm.arm, for an export to `arm`."""
    changing = ("vocab_size", "sliding_window", "layer_types", "use_sliding_window")
    before = {name: getattr(config, name) for name in changing if hasattr(config, name)}
    open_windows(config)
    if hasattr(config, "use_sliding_window"):
        config.use_sliding_window = False
    config.vocab_size = num_rows
    if changed := {name: value for name, value in before.items() if getattr(config, name) != value}:
        mdm["arm"] = changed
    config.is_causal = False
    config.use_cache = False
    config.mdm = mdm
