"""The trained model as a Hugging Face folder that opens without mdmscale."""

import shutil
from pathlib import Path
from typing import Any

import deepspeed
import torch

from mdmscale.distributed import Ranks, on_first_rank
from mdmscale.models.backbone import Backbone


def export_model(engine: Any, backbone: Backbone, folder: Path, ranks: Ranks) -> Path:
    """Write config, safetensors and tokenizer to `folder`, which appears only when it is complete.

    Every rank calls it: under ZeRO-3 the parameters are gathered one at a time, and kept on rank 0.
    """
    weights = _gather_weights(engine, backbone.model, ranks)
    unfinished = folder.with_name(f".unfinished-{folder.name}")

    def write() -> None:
        shutil.rmtree(unfinished, ignore_errors=True)
        backbone.model.save_pretrained(unfinished, state_dict=weights)
        backbone.tokenizer.save_pretrained(unfinished)
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)

    on_first_rank(ranks, write)
    return folder


def write_description(backbone: Backbone, folder: Path) -> None:
    """The model's config and tokenizer without its weights, into a new folder."""
    backbone.model.config.save_pretrained(folder)
    backbone.tokenizer.save_pretrained(folder)


def _gather_weights(engine: Any, model: torch.nn.Module, ranks: Ranks) -> dict[str, torch.Tensor]:
    is_sharded = engine.zero_optimization_stage() == 3
    weights = {}
    for name, parameter in model.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter], enabled=is_sharded):
            if ranks.is_first:
                weights[name] = parameter.detach().cpu().clone()
    return weights
