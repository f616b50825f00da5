"""Engines of a tiny model on one rank, this process, for every ZeRO stage and precision."""

from pathlib import Path
from typing import Any

import torch
from conftest import tiny_values
from transformers import AutoModelForCausalLM

from mdmscale.config.run import RunConfig
from mdmscale.engine.engine import Engine, initialise_engine
from mdmscale.models.backbone import DTYPES, scratch_config
from mdmscale.models.mdm import MaskedDiffusionModel
from mdmscale.parallel.batch_layout import make_layout
from mdmscale.parallel.ranks import Ranks

FROZEN = "backbone.model.norm.weight"


def make_config(stage: int, dtype: str, ema_decay: float | None = None, **parallel: Any) -> RunConfig:
    values = tiny_values(Path("corpus"), Path("runs"))
    values["model"] |= {"vocab_size": 64, "num_hidden_layers": 1, "dtype": dtype}
    values["train"] |= {"global_batch_size": 1, "micro_batch_size": 1, "ema_decay": ema_decay}
    values["diffusion"] = {}
    values["parallel"] = {"zero_stage": stage, **parallel}
    return RunConfig.model_validate(values)


def make_engine(config: RunConfig, ranks: Ranks) -> Engine:
    """An engine whose model has tied embeddings and a frozen parameter."""
    options = scratch_config(config.model, 0)
    backbone = AutoModelForCausalLM.from_config(options, dtype=DTYPES[config.model.dtype])
    model = MaskedDiffusionModel(backbone, None).train()
    dict(model.named_parameters())[FROZEN].requires_grad_(False)
    return initialise_engine(model, config, make_layout(config, ranks.world_size), ranks)


def take_step(engine: Engine, scale: float = 1.0) -> float:
    """Take one optimizer step on arbitrary tokens. Returns its loss."""
    token_ids = torch.arange(8)[None]
    loss, *_ = engine(
        input_ids=token_ids,
        attention_mask=None,
        positions=torch.arange(8),
        targets=token_ids[0],
        weights=torch.ones(8),
    )
    engine.accumulate(loss, scale, is_last=True)
    engine.step()
    return float(loss.detach())


class Planted:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.path,)
