"""The trained model as a Hugging Face folder that opens without mdmscale."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import deepspeed
import torch

from mdmscale.models.backbone import Backbone
from mdmscale.models.lora import merge, save_adapter
from mdmscale.parallel.collectives import on_first_rank
from mdmscale.parallel.ranks import Ranks
from mdmscale.parallel.tensor import joined, split_dimension
from mdmscale.system.folders import published_folder
from mdmscale.system.run_folder import ADAPTER_FOLDER


def export_model(engine: Any, backbone: Backbone, folder: Path, ranks: Ranks) -> Path:
    """Write config, safetensors and tokenizer to `folder`, which appears only when it is complete.

    Adapters are merged into the weights, and also written by themselves, to adapter/ beside `folder`.
    Every rank calls it: under ZeRO-3 the parameters are gathered one at a time, and kept on rank 0.
    """
    weights = _gather_weights(engine, backbone.model, ranks)

    def write_model(unfinished: Path) -> None:
        merged = weights if lora is None else merge(weights, lora.lora_alpha / lora.r)
        backbone.model.save_pretrained(unfinished, state_dict=merged)
        backbone.tokenizer.save_pretrained(unfinished)

    lora = backbone.lora
    if lora is not None:
        adapter = folder.with_name(ADAPTER_FOLDER)
        on_first_rank(ranks, lambda: _publish(adapter, partial(save_adapter, weights, lora)))
    on_first_rank(ranks, lambda: _publish(folder, write_model))
    return folder


def _publish(folder: Path, write: Callable[[Path], None]) -> None:
    with published_folder(folder) as unfinished:
        write(unfinished)


def write_description(backbone: Backbone, folder: Path) -> None:
    """The model's config and tokenizer without its weights, into a new folder."""
    backbone.model.config.save_pretrained(folder)
    backbone.tokenizer.save_pretrained(folder)
    if backbone.lora is not None:
        backbone.lora.save_pretrained(str(folder))


def _gather_weights(engine: Any, model: torch.nn.Module, ranks: Ranks) -> dict[str, torch.Tensor]:
    is_sharded = engine.zero_optimization_stage() == 3
    weights = {}
    for name, parameter in model.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter], enabled=is_sharded):
            whole = joined(parameter.detach(), split_dimension(name), ranks)
            if ranks.is_first:
                weights[name] = whole.cpu().clone()
    return weights
