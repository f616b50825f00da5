"""Import a folder of another model family: make it a bidirectional Hugging Face folder with a mask token."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig

from mdmscale.conversion import dream, llada
from mdmscale.conversion.destination import check_destination
from mdmscale.conversion.families import settle_family
from mdmscale.conversion.gguf_file import find_gguf, open_gguf
from mdmscale.conversion.gguf_model import GgufWeights, gguf_config
from mdmscale.conversion.gguf_tokenizer import save_gguf_tokenizer
from mdmscale.conversion.mask_token import MaskToken, choose_mask_token, next_token_id
from mdmscale.conversion.model_folder import (
    describing,
    expected_shapes,
    read_hf_config,
    save_hf_config,
    weight_parts,
)
from mdmscale.conversion.tokenizer_files import (
    add_mask_token,
    check_mask_token,
    copy_tokenizer,
    name_mask_token,
    open_copied,
)
from mdmscale.models.backbone import open_windows
from mdmscale.models.precision import DTYPES
from mdmscale.models.shape import ROW_MULTIPLE, round_up
from mdmscale.system.errors import UserError
from mdmscale.system.files import read_object
from mdmscale.system.folders import published_folder
from mdmscale.weights.progress import weights_progress
from mdmscale.weights.tensor_source import TensorSource
from mdmscale.weights.tensor_views import CastSource, MeanRowsSource, RemappedSource
from mdmscale.weights.weight_files import WeightFolder, check_expected
from mdmscale.weights.weight_writer import MAX_SHARD_BYTES, write_weights

# DiffuLLaMA was trained with an ordinary token of LLaMA-2 as its mask.
DIFFULLAMA_MASK = 811
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


@dataclass(frozen=True)
class Translation:
    """A model of another family in Hugging Face's terms, checked: config, weights and declared mask token.

    Attributes:
        save_tokenizer: writes its tokenizer files, if it has any, to a folder.
        notes: what else the user should know.
    """

    family: str
    config: PretrainedConfig
    weights: TensorSource
    mask_token_id: int | None
    save_tokenizer: Callable[[Path], None]
    notes: dict[str, str] = field(default_factory=dict)


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
            num_tokens = config.vocab_size if tokenizer is None else next_token_id(tokenizer)
            weights = MeanRowsSource(weights, num_rows, mean_rows, min(config.vocab_size, num_tokens))
        _write_tokenizer(folder, mask)
        origin = f"{model.family} {source.resolve().name}"
        mdm = {"mask_token_id": mask.token_id, "logit_shift": shift, "eps": EPS, "source": origin}
        _make_bidirectional(config, num_rows, mdm)
        save_hf_config(config, weights.tensors(), folder)
        with weights_progress(weights, "importing") as advance:
            write_weights(weights, folder, advance, options.max_shard_bytes)
    return {
        "family": model.family,
        "architecture": config.model_type,
        "parameters": sum(info.num_elements for info in weights.tensors().values()),
        "mask token": f"{mask.token_id} {mask.text or ''} ({mask.reason})",
        "logit shift": shift,
        "embeddings": config.vocab_size,
        "tokenizer": "copied" if tokenizer else "the source has none; to train, give model.tokenizer",
        **model.notes,
    }


def translate(source: Path, family: str = "auto", dtype: str = "keep") -> Translation:
    """Read config.json and the list of weights of `source`, and check that they fit together.

    `dtype` is for GGUF files, whose weights are dequantised to it; fp32 for `keep`, which loses nothing.

    Raises:
        UserError: naming the file at fault, or where `source` is not of the requested family.
    """
    if (file := find_gguf(source)) is not None:
        return _translate_gguf(source, file, family, DTYPES.get(dtype, torch.float32))
    values = read_object(source / "config.json")
    family = settle_family(family, values, source)
    mask: Any = DIFFULLAMA_MASK if family == "diffullama" else values.get("mask_token_id")
    if mask is not None and type(mask) is not int:
        raise UserError(f"{source / 'config.json'}: mask_token_id = {mask!r} is not a token id")
    files = WeightFolder(source)
    infos = files.tensors()
    with describing(source / "config.json"):
        match family:
            case "llada":
                config = llada.hf_config(values, source / "config.json")
            case "dream":
                config = dream.hf_config(values, infos, source / "config.json")
            case _:
                config = read_hf_config(source)
    parts = llada.hf_parts(infos, config, source) if family == "llada" else weight_parts(infos, config)
    weights = RemappedSource(files, parts)
    check_expected(weights, expected_shapes(config, source), source)
    return Translation(family, config, weights, mask, partial(copy_tokenizer, source))


def _translate_gguf(source: Path, path: Path, family: str, dtype: torch.dtype) -> Translation:
    file = open_gguf(path)
    config = gguf_config(file)
    family = settle_family(family, config.to_dict(), path)
    mask = DIFFULLAMA_MASK if family == "diffullama" else None
    has_tokenizer = (source / "tokenizer.json").is_file()  # a folder with the file and the original tokenizer
    save = partial(copy_tokenizer, source) if has_tokenizer else partial(save_gguf_tokenizer, file)
    notes = {
        "tokenizer": "copied from the folder" if has_tokenizer else "from the GGUF file",
        "weights": f"{file.formats} dequantised to {str(dtype).removeprefix('torch.')}",
    }
    return Translation(family, config, GgufWeights(file, config, dtype), mask, save, notes)


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
