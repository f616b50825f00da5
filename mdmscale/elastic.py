"""Going on from a checkpoint of other ranks or another ZeRO stage: its values, put into this job's engine.

A checkpoint of the same layout is loaded by DeepSpeed, bit for bit. Any other is read parameter by parameter
(conversion/deepspeed_checkpoint.py): weights, fp32 masters and Adam's moments go into the engine's shards, so
that nothing but the order of sums can differ. Group options are not loaded: they are always the config's.
"""

from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

from mdmscale.conversion.deepspeed_checkpoint import MASTER, MOMENTS, DeepSpeedCheckpoint
from mdmscale.errors import UserError


def load_other_layout(engine: Any, folder: Path) -> None:
    """Put a checkpoint of any stage and number of ranks into `engine`. Every rank calls it and reads all.

    Raises:
        UserError: where the checkpoint is damaged, or is another model's.
    """
    checkpoint = DeepSpeedCheckpoint(folder)
    parameters = dict(engine.module.named_parameters())
    _check_same_model(parameters, checkpoint)
    _make_moments(engine)
    for name, parameter in parameters.items():
        _set_weight(engine, parameter, checkpoint.weight(name))
        if parameter.requires_grad:
            _set_optimizer(engine, parameter, checkpoint, name)
    step = torch.tensor(float(checkpoint.optimizer_step))
    for state in _adam(engine).state.values():
        state["step"] = step.clone()  # a tensor of its own: AdamW counts in place


# DeepSpeed's names for the flat fp32 shards: ZeRO 1 and 2, ZeRO 1 in bf16, ZeRO 3.
SHARDS = ("single_partition_of_fp32_groups", "fp32_groups_flat_partition", "fp32_partitioned_groups_flat")


def _make_moments(engine: Any) -> None:
    """Give ZeRO's flat shards the Adam states that the setters need and only a first step would make."""
    optimizer = engine.optimizer
    shards: list[torch.Tensor] = next(
        (getattr(optimizer, name) for name in SHARDS if hasattr(optimizer, name)), []
    )
    for shard in shards:
        _adam(engine).state[shard].update({kind: torch.zeros_like(shard) for kind in MOMENTS})
    if hasattr(optimizer, "_lazy_init_hp_params_optimizer_state"):
        optimizer._lazy_init_hp_params_optimizer_state()


def _check_same_model(parameters: dict[str, torch.nn.Parameter], checkpoint: DeepSpeedCheckpoint) -> None:
    shapes = {name: tuple(getattr(each, "ds_shape", each.shape)) for name, each in parameters.items()}
    theirs = {name: checkpoint.shape(name) for name in checkpoint.names}
    trained = {name for name, each in parameters.items() if each.requires_grad}
    if shapes != theirs or trained != checkpoint.trained:
        different = sorted(
            {name for name in shapes | theirs if shapes.get(name) != theirs.get(name)}
            | (trained ^ checkpoint.trained)
        )
        raise UserError(
            f"{checkpoint.folder}: its weights do not fit this config's model: {different[0]} is "
            f"{theirs.get(different[0], 'not there')}, and {shapes.get(different[0], 'not there')} here"
        )


def _set_weight(engine: Any, parameter: torch.nn.Parameter, weight: torch.Tensor) -> None:
    is_sharded = engine.zero_optimization_stage() == 3
    with torch.no_grad(), deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=is_sharded):
        if not is_sharded or torch.distributed.get_rank() == 0:
            parameter.copy_(weight)


def _set_optimizer(
    engine: Any, parameter: torch.nn.Parameter, checkpoint: DeepSpeedCheckpoint, name: str
) -> None:
    """The fp32 master and the moments of one parameter, or of this rank's part of it."""
    if engine.zero_optimization():
        safe_set_full_fp32_param(parameter, checkpoint.optimizer_value(name, MASTER))
        for kind in MOMENTS:
            safe_set_full_optimizer_state(parameter, checkpoint.optimizer_value(name, kind), kind)
        return
    master = _masters(engine).get(parameter, parameter)
    with torch.no_grad():
        master.copy_(checkpoint.optimizer_value(name, MASTER))
    state = _adam(engine).state[master]
    for kind in MOMENTS:
        state[kind] = checkpoint.optimizer_value(name, kind).to(master.device, copy=True)


def _masters(engine: Any) -> dict[torch.nn.Parameter, torch.Tensor]:
    """ZeRO-0 in bf16: the fp32 master of each parameter; in fp32 there are none."""
    optimizer = engine.optimizer
    if not hasattr(optimizer, "fp32_groups"):
        return {}
    pairs = zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True)
    return {low: high for lows, highs in pairs for low, high in zip(lows, highs, strict=True)}


def _adam(engine: Any) -> torch.optim.Optimizer:
    """torch's optimizer inside DeepSpeed's wrapper."""
    optimizer = engine.optimizer
    return optimizer if isinstance(optimizer, torch.optim.Optimizer) else optimizer.optimizer
