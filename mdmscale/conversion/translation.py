"""Read a model of another family: its config, weights and tokenizer in Hugging Face's terms, checked."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig

from mdmscale.conversion import dream, llada
from mdmscale.conversion.families import settle_family
from mdmscale.conversion.gguf_file import find_gguf, open_gguf
from mdmscale.conversion.gguf_model import GgufWeights, gguf_config
from mdmscale.conversion.gguf_tokenizer import save_gguf_tokenizer
from mdmscale.conversion.model_folder import (
    describing,
    expected_shapes,
    own_weights,
    read_hf_config,
    read_values,
)
from mdmscale.conversion.tokenizer_files import copy_tokenizer
from mdmscale.models.precision import DTYPES
from mdmscale.models.token_ids import TokenIds, stated_ids
from mdmscale.system.errors import UserError
from mdmscale.weights.adapters import MergedSource, read_adapter
from mdmscale.weights.tensor_source import TensorSource
from mdmscale.weights.tensor_views import RemappedSource
from mdmscale.weights.weight_files import WeightFolder, check_expected, check_floating

# DiffuLLaMA was trained with an ordinary token of LLaMA-2 as its mask.
DIFFULLAMA_MASK = 811
MERGE_BY_PEFT = "merge it with peft (merge_and_unload), and import the result"


@dataclass(frozen=True)
class Translation:
    """A model of another family in Hugging Face's terms, checked.

    Attributes:
        weights: with an adapter that lies beside them merged.
        mask_token_id: the one that the source declares.
        token_ids: EOS, BOS and padding, as the source states them beside its tokenizer.
        save_tokenizer: writes its tokenizer files, if it has any, to a folder.
        facts: more lines for the summary.
        notes: what a user should know about the weights.
    """

    family: str
    config: PretrainedConfig
    weights: TensorSource
    mask_token_id: int | None
    token_ids: TokenIds
    save_tokenizer: Callable[[Path], None]
    has_adapter: bool = False
    facts: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def translate(source: Path, family: str = "auto", dtype: str = "keep") -> Translation:
    """Read config.json and the list of weights of `source`, and check that they fit together.

    `dtype` is for GGUF files, whose weights are dequantised to it; fp32 for `keep`, which loses nothing.

    Raises:
        UserError: naming the file at fault, or where `source` is not of the requested family.
    """
    if (file := find_gguf(source)) is not None:
        return _translate_gguf(source, file, family, DTYPES.get(dtype, torch.float32))
    values = read_values(source)
    family = settle_family(family, values, source)
    mask: Any = DIFFULLAMA_MASK if family == "diffullama" else values.get("mask_token_id")
    if mask is not None and type(mask) is not int:
        raise UserError(f"{source / 'config.json'}: mask_token_id = {mask!r} is not a token id")
    files, adapter = WeightFolder(source), read_adapter(source)
    infos = files.tensors()
    check_floating(infos, source)
    stored: TensorSource = files if adapter is None else MergedSource(files, adapter, MERGE_BY_PEFT)
    with describing(source / "config.json"):
        match family:
            case "llada":
                config = llada.hf_config(values, source / "config.json")
                stored = RemappedSource(stored, llada.hf_parts(infos, config, source))
            case "dream":
                config = dream.hf_config(values, infos, source / "config.json")
            case _:
                config = read_hf_config(source)
    says_tied = config.tie_word_embeddings
    weights = own_weights(stored, config)
    has_own_head = says_tied and not config.tie_word_embeddings
    if has_own_head and family == "llada":
        raise UserError(
            f"{source}: config.json has weight_tying, but the weights have another head in ff_out, which "
            "LLaDA's code would ignore; set weight_tying to false, or remove ff_out from the weights"
        )
    check_expected(weights, expected_shapes(config, source), source)
    notes = []
    if files.ignored:
        notes.append(f"{files.ignored} is ignored, as a single file of weights is beside it")
    if has_own_head:
        notes.append("config.json says that the head is tied, but it is another weight: kept")
    return Translation(
        family,
        config,
        weights,
        mask,
        stated_ids(source),
        save_tokenizer=partial(copy_tokenizer, source),
        has_adapter=adapter is not None,
        notes=notes,
    )


def _translate_gguf(source: Path, path: Path, family: str, dtype: torch.dtype) -> Translation:
    file = open_gguf(path)
    config = gguf_config(file)
    family = settle_family(family, config.to_dict(), path)
    mask = DIFFULLAMA_MASK if family == "diffullama" else None
    has_tokenizer = (source / "tokenizer.json").is_file()  # a folder with the file and the original tokenizer
    return Translation(
        family,
        config,
        GgufWeights(file, config, dtype),
        mask,
        TokenIds(),  # a GGUF file states them as the tokenizer's
        save_tokenizer=partial(copy_tokenizer, source)
        if has_tokenizer
        else partial(save_gguf_tokenizer, file),
        facts={
            "tokenizer": "copied from the folder" if has_tokenizer else "from the GGUF file",
            "weights": f"{file.formats} dequantised to {str(dtype).removeprefix('torch.')}",
        },
    )
