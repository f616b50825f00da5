"""Every private name of DeepSpeed that mdmscale uses. No other module uses one.

DeepSpeed does not guarantee these names, so a new release may rename them. tests/engine/test_private.py looks
up each name in the installed release and fails with the name that is missing. Public functions, such as
`deepspeed.initialize` or `save_checkpoint`, are called directly.

DeepSpeed takes seconds to import. A command that only reads a checkpoint needs very little of it, so each
function here imports what it needs.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mdmscale.system.disk import disk_errors
from mdmscale.system.errors import UserError, first_line

MASTER, MOMENTS = "master", ("exp_avg", "exp_avg_sq")

# ---- The engine and its parameters ----


def forget_model_parallel_unit() -> None:
    """Drop the `mpu` of an earlier engine in this process. Otherwise the next engine would use it."""
    from deepspeed.utils import groups

    groups.mpu = None


def mark_as_part(parameter: nn.Parameter) -> None:
    """Mark `parameter` as split over tensor ranks, so that DeepSpeed sums the norms of its parts."""
    parameter.model_parallel = True  # type: ignore[attr-defined]


def is_part(parameter: nn.Parameter) -> bool:
    """Whether `parameter` is marked by `mark_as_part`."""
    return getattr(parameter, "model_parallel", False)


def whole_shape(parameter: nn.Parameter, is_sharded: bool) -> tuple[int, ...]:
    """The shape of `parameter` on this tensor rank. Under ZeRO-3 (`is_sharded`) its tensor is empty."""
    return tuple(parameter.ds_shape if is_sharded else parameter.shape)  # type: ignore[attr-defined]


def own_values(parameter: nn.Parameter) -> torch.Tensor:
    """What this rank holds of `parameter`: all of it, or its shard under ZeRO-3."""
    return getattr(parameter, "ds_tensor", parameter)


# ---- The optimizer, which DeepSpeed wraps in a class for each way of sharding it ----

# The attribute with the flat fp32 vectors that AdamW updates: this rank's shard of one per parameter group.
SHARDS_OF = {
    "DeepSpeedZeroOptimizer": "single_partition_of_fp32_groups",  # ZeRO 1 and 2
    "BF16_Optimizer": "fp32_groups_flat_partition",  # ZeRO 1 in bf16, with fp32 gradients
    "DeepSpeedZeroOptimizer_Stage3": "fp32_partitioned_groups_flat",
}
_ZERO_0_IN_BF16 = "FP16_UnfusedOptimizer"
_ZERO_1_AND_2 = ("DeepSpeedZeroOptimizer", "BF16_Optimizer")
_ZERO_3 = "DeepSpeedZeroOptimizer_Stage3"


def adam(optimizer: Any) -> torch.optim.Optimizer:
    """The torch optimizer inside DeepSpeed's wrapper. ZeRO-0 in fp32 has no wrapper."""
    return optimizer if isinstance(optimizer, torch.optim.Optimizer) else optimizer.optimizer


def flat_shards(optimizer: Any) -> list[torch.Tensor]:
    """This rank's shards of the flat fp32 vectors; ZeRO-0 has none."""
    attribute = SHARDS_OF.get(type(optimizer).__name__)
    return [] if attribute is None else list(getattr(optimizer, attribute))


def masters(optimizer: Any) -> dict[nn.Parameter, torch.Tensor]:
    """The fp32 master of each parameter at ZeRO-0. In fp32 there are none: AdamW updates the parameters."""
    if isinstance(optimizer, torch.optim.Optimizer):
        return {}
    pairs = zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True)  # fp16 means bf16 here
    return {low: high for lows, highs in pairs for low, high in zip(lows, highs, strict=True)}


def undo_first_step(optimizer: Any) -> None:
    """Undo the step on zero gradients by which DeepSpeed makes AdamW's state at ZeRO-0 in bf16.

    It has decayed the masters, and AdamW would count it. Call this before any step.
    """
    if type(optimizer).__name__ == _ZERO_0_IN_BF16:
        adam(optimizer).state.clear()
        with torch.no_grad():
            for low, high in masters(optimizer).items():
                high.copy_(low)


@contextmanager
def skipped_if(optimizer: Any, is_skipped: Callable[[float], bool]) -> Iterator[None]:
    """Within the block AdamW skips the step of a global gradient norm for which `is_skipped` is true.

    DeepSpeed knows the norm only within its step, in which it calls AdamW for each part of the parameters. It
    then copies the masters, which have not changed, to the weights.
    """
    inner: Any = adam(optimizer)
    take_step = inner.step
    decide = cache(lambda: is_skipped(float(optimizer._global_grad_norm)))
    inner.step = lambda *arguments: None if decide() else take_step(*arguments)
    try:
        yield
    finally:
        del inner.step  # of this instance, so that the class's one is called again


def link_moments(optimizer: Any) -> None:
    """Let ZeRO's setters find the moments in AdamW's state.

    DeepSpeed links them only once, at the first step of the first group. Call this before any step.
    """
    if type(optimizer).__name__ in _ZERO_1_AND_2:
        optimizer._lazy_init_hp_params_optimizer_state()


def set_optimizer_values(parameter: nn.Parameter, values: dict[str, torch.Tensor]) -> None:
    """Put whole fp32 values (MASTER and parts of AdamW's state) into this rank's shard. ZeRO 1 to 3.

    Every rank calls this.
    """
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    for kind, value in values.items():
        if kind == MASTER:
            safe_set_full_fp32_param(parameter, value)
        else:
            safe_set_full_optimizer_state(parameter, value, kind)


def update_weights(optimizer: Any) -> None:
    """Set the model's weights to the rounded fp32 masters, as DeepSpeed does after a step.

    Every rank calls this. ZeRO-0 in fp32 has no masters.
    """
    if type(optimizer).__name__ in _ZERO_1_AND_2:
        optimizer.update_lp_params()
    elif type(optimizer).__name__ == _ZERO_3:
        optimizer._partition_all_parameters()
        for number in range(len(flat_shards(optimizer))):
            optimizer._reassign_or_swap_out_partitioned_parameters(number)
        if small := optimizer.persistent_parameters:  # which every rank holds whole
            small[0].all_gather(small)
        optimizer.invalidate_secondary_tensor()
    else:
        with torch.no_grad():
            for low, high in masters(optimizer).items():
                low.copy_(high)


# ---- NVMe: ZeRO-3's swapper, which keeps some of the shards and their moments in files ----


@dataclass(frozen=True)
class SwappedTensor:
    """A shard or a moment whose values are in a file. `tensor` is empty between steps."""

    tensor: torch.Tensor
    path: Path
    num_elements: int


def can_swap() -> bool:
    """Whether this machine has libaio and a compiler for DeepSpeed's asynchronous I/O."""
    from deepspeed.ops.op_builder import AsyncIOBuilder

    return AsyncIOBuilder().is_compatible(verbose=False)


def is_swapping(optimizer: Any) -> bool:
    """Whether `optimizer` reads shards from files before its step and writes them back after it."""
    return type(optimizer).__name__ == _ZERO_3 and optimizer.swap_optimizer


def set_swapping(optimizer: Any, is_on: bool) -> None:
    """Turn swapping on or off. While it is off, DeepSpeed treats shards as tensors in memory."""
    optimizer.swap_optimizer = is_on


def swapped_tensors(optimizer: Any) -> list[SwappedTensor]:
    """Every tensor of a swapping optimizer whose values are in a file."""
    return [
        SwappedTensor(each.compute_tensor, Path(each.swap_path), info.numel())
        for info in optimizer.optimizer_swapper.swap_params_info.values()
        for each in info.tensors
    ]


def release_swapped(optimizer: Any) -> None:
    """Free the memory of swapped tensors. Their values remain in the files.

    First it asks the swapper for each shard: this registers moments that were created in the meantime.
    """
    swapper = optimizer.optimizer_swapper
    for shard in flat_shards(optimizer):
        swapper._get_param_swap_info(shard)
    for info in swapper.swap_params_info.values():
        info.release_memory()


def moment_file(optimizer: Any, shard: torch.Tensor, kind: str) -> Path | None:
    """The file of a moment of `shard`, named as DeepSpeed names it. None for a shard in memory."""
    swapper = optimizer.optimizer_swapper if type(optimizer).__name__ == _ZERO_3 else None
    if swapper is None or shard.ds_id not in swapper.swap_params_info:  # type: ignore[attr-defined]
        return None
    return Path(swapper.swap_folder) / f"{kind}-{shard.ds_id}.tensor.swp"  # type: ignore[attr-defined]


def elements_in_file(optimizer: Any, num_elements: int) -> int:
    """The number of elements that DeepSpeed reads for a tensor of `num_elements`. It reads whole blocks."""
    return optimizer.optimizer_swapper._io_aligned_numel(num_elements)


def dtype_in_file(optimizer: Any) -> torch.dtype:
    """The precision of swapped tensors."""
    return optimizer.optimizer_swapper.dtype


# ---- The files of a checkpoint: names, and keys of the dictionaries in them ----

MODULE = "module"  # parameters by name; under ZeRO-3 these are empty but have the dtype
TIED = "shared_params"  # {name without values: name with the values}
SHAPES = "param_shapes"  # ZeRO-3: whole shapes by name, a dictionary for each parameter group
FROZEN_SHAPES = "frozen_param_shapes"  # ZeRO-3
FROZEN_PIECES = "frozen_param_fragments"  # ZeRO-3: this rank's pieces of frozen parameters
OPTIMIZER = "optimizer"  # ZeRO-0: the optimizer's state, in the model's file
MASTERS = "fp32_groups"  # ZeRO-0 in bf16
INNER_STATE = "optimizer_state_dict"  # AdamW's state at ZeRO-0 in bf16 and ZeRO-3; all of an optimizer file
BASE_STATE = "base_optimizer_state"  # AdamW's state at ZeRO 1 and 2
FLAT_MASTERS = "fp32_flat_groups"  # ZeRO-3
PARTITIONS = "single_partition_of_fp32_groups"  # ZeRO 1 and 2


def model_file(tensor_rank: int, shard: int | None) -> str:
    """The file of a tensor rank's weights. ZeRO-3 has one per `shard`; other stages have one for all."""
    of_shard = "" if shard is None else f"zero_pp_rank_{shard}_"
    return f"{of_shard}mp_rank_{tensor_rank:02d}_model_states.pt"


def optimizer_file(tensor_rank: int, shard: int) -> str:
    """A pattern for the file of a shard of the optimizer's state, ZeRO 1 to 3. bf16 adds a prefix."""
    return f"*zero_pp_rank_{shard}_mp_rank_{tensor_rank:02d}_optim_states.pt"


def read_weights_only(engine: Any) -> None:
    """Make DeepSpeed's `engine` load its files by `read_file`. Its own loader runs any code in them."""
    engine.checkpoint_engine.load = lambda path, map_location=None: read_file(Path(path), map_location)


def read_file(path: Path, map_location: Any = "cpu", *, mapped: bool = False) -> dict[str, Any]:
    """The content of one of these files. Only tensors, plain values and known classes are unpickled.

    Args:
        mapped: map the tensors into memory, so that only those that are used are read from disk.

    Raises:
        UserError: where the file is missing or damaged, or holds anything else. Nothing of it is run.
    """
    try:
        with torch.serialization.safe_globals(_classes_in_files()):
            return torch.load(path, map_location=map_location, mmap=mapped, weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: is missing") from None
    except Exception as error:  # torch raises many kinds of errors for damaged files
        raise UserError(f"{path}: cannot be read: {first_line(error)}") from None


@contextmanager
def put_off_write_errors(engine: Any) -> Iterator[None]:
    """Within the block `engine` goes on after a file that it cannot write. The block's end raises the error.

    Its ranks wait for each other several times in a save, which a rank that gives up would keep waiting.

    Raises:
        UserError: naming the file, if the disk is full or fails.
    """
    files, errors = engine.checkpoint_engine, list[Exception]()
    save, copy_scripts = files.save, engine._copy_recovery_script

    def attempt(path: str, write: Callable[[], None]) -> None:
        try:
            with disk_errors(Path(path)):
                write()
        except Exception as error:
            errors.append(error)

    def save_opened(state_dict: Any, path: str) -> None:
        with open(path, "wb") as file:  # torch would lose the reason of an error if it opened the file itself
            save(state_dict, file)

    files.save = lambda state_dict, path: attempt(path, lambda: save_opened(state_dict, path))
    engine._copy_recovery_script = lambda path: attempt(path, lambda: copy_scripts(path))
    try:
        yield
    finally:
        files.save, engine._copy_recovery_script = save, copy_scripts
    if errors:
        raise errors[0]


def _classes_in_files() -> list[Any]:
    """DeepSpeed's classes in these files. They hold numbers only, so they are safe to unpickle."""
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [LossScaler, ZeroStageEnum, fragment_address]
