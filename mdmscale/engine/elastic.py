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

from mdmscale.engine.checkpoint_weights import DeepSpeedCheckpoint
from mdmscale.engine.files import MASTER, MOMENTS
from mdmscale.engine.nvme import mapped, zero_moment
from mdmscale.parallel.ranks import Ranks
from mdmscale.parallel.tensor import local_part, split_dimension
from mdmscale.system.errors import UserError


def load_other_layout(engine: Any, folder: Path, ranks: Ranks) -> None:
    """Put a checkpoint of any stage and ranks into `engine`. Every rank calls it and reads its part.

    Raises:
        UserError: where the checkpoint is damaged, or is another model's.
    """
    checkpoint = DeepSpeedCheckpoint(folder)
    parameters = dict(engine.module.named_parameters())
    _check_same_model(parameters, checkpoint, ranks)
    with mapped(engine.optimizer):
        _make_moments(engine)
        for name, parameter in parameters.items():

            def part(whole: torch.Tensor, name: str = name) -> torch.Tensor:
                return local_part(whole, split_dimension(name), ranks)

            _set_weight(engine, parameter, part(checkpoint.weight(name)), ranks)
            if parameter.requires_grad:
                values = {kind: part(checkpoint.optimizer_value(name, kind)) for kind in (MASTER, *MOMENTS)}
                _set_optimizer(engine, parameter, values)
    for shard, state in _adam(engine).state.items():  # each a tensor of its own: AdamW counts in place
        state["step"] = torch.tensor(float(checkpoint.optimizer_step), device=shard.device)


# DeepSpeed's names for the flat fp32 shards: ZeRO 1 and 2, ZeRO 1 in bf16, ZeRO 3.
SHARDS = ("single_partition_of_fp32_groups", "fp32_groups_flat_partition", "fp32_partitioned_groups_flat")


def _make_moments(engine: Any) -> None:
    """Give ZeRO's flat shards the Adam states that the setters need and only a first step would make."""
    optimizer = engine.optimizer
    shards: list[torch.Tensor] = next(
        (getattr(optimizer, name) for name in SHARDS if hasattr(optimizer, name)), []
    )
    for shard in shards:
        _adam(engine).state[shard].update({kind: zero_moment(optimizer, shard, kind) for kind in MOMENTS})
    if hasattr(optimizer, "_lazy_init_hp_params_optimizer_state"):
        optimizer._lazy_init_hp_params_optimizer_state()


def _check_same_model(
    parameters: dict[str, torch.nn.Parameter], checkpoint: DeepSpeedCheckpoint, ranks: Ranks
) -> None:
    shapes = {name: _whole_shape(name, each, ranks) for name, each in parameters.items()}
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


def _whole_shape(name: str, parameter: torch.nn.Parameter, ranks: Ranks) -> tuple[int, ...]:
    shape, dimension = list(getattr(parameter, "ds_shape", parameter.shape)), split_dimension(name)
    if dimension is not None:
        shape[dimension] *= ranks.tp_size
    return tuple(shape)


def _set_weight(engine: Any, parameter: torch.nn.Parameter, weight: torch.Tensor, ranks: Ranks) -> None:
    is_sharded = engine.zero_optimization_stage() == 3
    is_first = ranks.rank == ranks.tp_rank  # of the ranks with these weights
    with torch.no_grad(), deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=is_sharded):
        if not is_sharded or is_first:
            parameter.copy_(weight)


def _set_optimizer(engine: Any, parameter: torch.nn.Parameter, values: dict[str, torch.Tensor]) -> None:
    """The fp32 master and the moments of one parameter, or of this rank's shard of it."""
    if engine.zero_optimization():
        safe_set_full_fp32_param(parameter, values[MASTER])
        for kind in MOMENTS:
            safe_set_full_optimizer_state(parameter, values[kind], kind)
        return
    master = _masters(engine).get(parameter, parameter)
    with torch.no_grad():
        master.copy_(values[MASTER])
    state = _adam(engine).state[master]
    for kind in MOMENTS:
        state[kind] = values[kind].to(master.device, copy=True)


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
