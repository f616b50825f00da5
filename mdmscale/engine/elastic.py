"""Loads a checkpoint of other ranks or another ZeRO stage into this job's engine.

DeepSpeed itself loads a checkpoint of the same layout, bit for bit. Any other checkpoint is read parameter by
parameter (engine/checkpoint_weights.py), and its weights, fp32 masters, Adam moments and average of the
weights are copied into the engine's shards. After that, results can differ only by the order of sums. The
options of parameter groups are not loaded: they always come from the config.
"""

from pathlib import Path
from typing import Any

import deepspeed
import torch

from mdmscale.engine import private
from mdmscale.engine.averaging import AVERAGE, UPDATES, is_averaging
from mdmscale.engine.checkpoint_weights import DeepSpeedCheckpoint
from mdmscale.engine.nvme import mapped, zero_moment
from mdmscale.engine.private import MASTER, MOMENTS
from mdmscale.parallel.ranks import Ranks
from mdmscale.parallel.tensor import local_part, split_dimension
from mdmscale.system.errors import UserError


def load_other_layout(engine: Any, folder: Path, ranks: Ranks) -> None:
    """Load a checkpoint of any ZeRO stage and any ranks into DeepSpeed's `engine`.

    Every rank calls this and reads its own part.

    Raises:
        UserError: if the checkpoint is damaged, or of another model.
    """
    checkpoint = DeepSpeedCheckpoint(folder)
    parameters = dict(engine.module.named_parameters())
    _check_same_model(parameters, checkpoint, engine.zero_optimization_stage() == 3, ranks)
    keeps_average = is_averaging(engine.optimizer) and checkpoint.average_updates is not None
    kinds = (*MOMENTS, AVERAGE) if keeps_average else MOMENTS
    with mapped(engine.optimizer):
        _make_state(engine.optimizer, kinds)
        for name, parameter in parameters.items():

            def part(whole: torch.Tensor, name: str = name) -> torch.Tensor:
                return local_part(whole, split_dimension(name), ranks)

            _set_weight(engine, parameter, part(checkpoint.weight(name)), ranks)
            if parameter.requires_grad:
                values = {kind: part(checkpoint.optimizer_value(name, kind)) for kind in (MASTER, *kinds)}
                _set_optimizer(engine, parameter, values)
    # One tensor per state: AdamW counts in place, so states that shared a tensor would count too fast.
    for shard, state in private.adam(engine.optimizer).state.items():
        state["step"] = torch.tensor(float(checkpoint.optimizer_step), device=shard.device)
        if checkpoint.average_updates is not None and keeps_average:
            state[UPDATES] = torch.tensor(float(checkpoint.average_updates), device=shard.device)


def _make_state(optimizer: Any, kinds: tuple[str, ...]) -> None:
    """Create AdamW's state for ZeRO's flat shards. The setters need it before a first step."""
    states = private.adam(optimizer).state
    for shard in private.flat_shards(optimizer):
        states[shard].update({kind: zero_moment(optimizer, shard, kind) for kind in kinds})
    private.link_moments(optimizer)


def _check_same_model(
    parameters: dict[str, torch.nn.Parameter], checkpoint: DeepSpeedCheckpoint, is_sharded: bool, ranks: Ranks
) -> None:
    shapes = {name: _whole_shape(name, each, is_sharded, ranks) for name, each in parameters.items()}
    theirs = {name: checkpoint.shape(name) for name in checkpoint.names}
    trained = {name for name, each in parameters.items() if each.requires_grad}
    if shapes != theirs or trained != checkpoint.trained:
        different = sorted(
            {name for name in shapes | theirs if shapes.get(name) != theirs.get(name)}
            | (trained ^ checkpoint.trained)
        )
        raise UserError(
            f"{checkpoint.folder}: its weights do not fit this config's model: {different[0]} is "
            f"{theirs.get(different[0], 'missing')} in the checkpoint and "
            f"{shapes.get(different[0], 'missing')} in the model"
        )


def _whole_shape(name: str, parameter: torch.nn.Parameter, is_sharded: bool, ranks: Ranks) -> tuple[int, ...]:
    shape, dimension = list(private.whole_shape(parameter, is_sharded)), split_dimension(name)
    if dimension is not None:
        shape[dimension] *= ranks.tp_size
    return tuple(shape)


def _set_weight(engine: Any, parameter: torch.nn.Parameter, weight: torch.Tensor, ranks: Ranks) -> None:
    is_sharded = engine.zero_optimization_stage() == 3
    is_first = ranks.rank == ranks.tp_rank  # the first of the ranks that have these weights
    with torch.no_grad(), deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=is_sharded):
        if not is_sharded or is_first:
            parameter.copy_(weight)


def _set_optimizer(engine: Any, parameter: torch.nn.Parameter, values: dict[str, torch.Tensor]) -> None:
    """Set the fp32 master and AdamW's state of one parameter, or of this rank's shard of it."""
    if engine.zero_optimization():
        private.set_optimizer_values(parameter, values)
        return
    master = private.masters(engine.optimizer).get(parameter, parameter)
    with torch.no_grad():
        master.copy_(values[MASTER])
    state = private.adam(engine.optimizer).state[master]
    for kind in values.keys() - {MASTER}:
        state[kind] = values[kind].to(master.device, copy=True)
