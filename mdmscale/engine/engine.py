"""The engine of a run. The rest of the package uses `Engine` and never DeepSpeed's own engine."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch import nn

from mdmscale.config.run import RunConfig
from mdmscale.engine import averaging, private
from mdmscale.engine.deepspeed_config import clips_itself, deepspeed_config
from mdmscale.engine.elastic import load_other_layout
from mdmscale.engine.finite import all_finite, tensors_in
from mdmscale.engine.nvme import mapped, swap_folder
from mdmscale.engine.optim import make_optimizer
from mdmscale.parallel.batch_layout import BatchLayout
from mdmscale.parallel.op_build import load_op
from mdmscale.parallel.ranks import Ranks
from mdmscale.parallel.tensor import joined, split_dimension
from mdmscale.system.errors import UserError
from mdmscale.system.run_folder import ENGINE_FOLDER


@dataclass(frozen=True)
class Engine:
    """Model and optimizer of a run. Callers clip, save and gather in the same way at every ZeRO stage."""

    deepspeed: Any  # DeepSpeed's engine
    gradient_clipping: float
    clips_itself: bool
    tensor_group: dist.ProcessGroup | None
    mean_factor: Fraction  # turns DeepSpeed's mean over micro-batches and ranks into a mean over samples

    def __call__(self, **inputs: Any) -> Any:
        """The model's forward. Under ZeRO-3 it is a collective, so every rank must call it equally often."""
        return self.deepspeed(**inputs)

    @property
    def module(self) -> nn.Module:
        """The model. Under ZeRO-3 its parameters are empty outside forward and backward."""
        return self.deepspeed.module

    @property
    def optimizer(self) -> Any:
        """AdamW, or DeepSpeed's wrapper around it. Its `param_groups` hold the options of each group."""
        return self.deepspeed.optimizer

    @property
    def training(self) -> bool:
        """Whether the model is in training mode. DeepSpeed's own engine always reports training mode."""
        return self.module.training

    def train(self, mode: bool = True) -> None:
        """Put the model into training mode, or into evaluation mode if `mode` is False."""
        self.deepspeed.train(mode)

    def eval(self) -> None:
        """Put the model into evaluation mode."""
        self.deepspeed.eval()

    def accumulate(self, loss: torch.Tensor, scale: float | torch.Tensor, is_last: bool) -> None:
        """Run backward for a micro-batch's summed loss times `scale`, its part of the global batch's mean.

        DeepSpeed counts a micro-batch when its own `step` is called. This method calls it for every
        micro-batch except the last of a step. For that one `Engine.step` calls it and updates the weights.

        A loss that is not finite gives a gradient that is not, on every rank once they are summed. So all
        ranks skip the step, without asking each other.
        """
        factor = scale * self.mean_factor.numerator / self.mean_factor.denominator
        poison = torch.where(loss.detach().isfinite(), 1.0, math.nan)
        self.deepspeed.backward((loss * factor * poison).to(loss.dtype))
        if not is_last:
            self.deepspeed.step()

    def step(self, is_skipped: Callable[[float], bool] | None = None) -> float:
        """Clip and apply the step's gradients. Returns the global gradient norm before clipping.

        If the norm is not finite, the step is skipped: the weights and AdamW's state stay as they are.

        Args:
            is_skipped: tells of a finite norm whether the step is skipped, too; alike on every rank.
        """
        if self.clips_itself:
            parameters = list(self.module.parameters())
            norm = gradient_norm(parameters, self.tensor_group)
            nn.utils.clip_grads_with_norm_(parameters, self.gradient_clipping or float("inf"), norm)
            # at other stages DeepSpeed itself skips a step whose norm is not finite
            if not norm.isfinite() or (is_skipped is not None and is_skipped(float(norm))):
                self.module.zero_grad()
            self.deepspeed.step()
        else:
            with nullcontext() if is_skipped is None else private.skipped_if(self.optimizer, is_skipped):
                self.deepspeed.step()
            norm = self.deepspeed.get_global_grad_norm()
        return float(norm)

    @property
    def averages(self) -> bool:
        """Whether the engine keeps an average of the weights (train.ema_decay)."""
        return averaging.is_averaging(self.optimizer)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within the block the model has the average as its weights; after it, its own ones, bit for bit.

        Every rank enters and leaves the block, and takes no step in it.
        """
        with averaging.averaged(self.optimizer):
            yield

    def is_finite(self) -> bool:
        """Whether this rank's weights, their fp32 masters, and all that AdamW keeps of them are finite."""
        with mapped(self.optimizer):
            weights = map(private.own_values, self.module.parameters())
            states = private.adam(self.optimizer).state  # of each master, once a step has been taken
            return all_finite([*weights, *states, *tensors_in([*states.values()])])

    def save(self, folder: Path) -> None:
        """Write DeepSpeed's files to a subfolder of `folder`. Every rank calls this.

        Raises:
            UserError: on the ranks for which the disk is full or fails, when no rank waits for another.
        """
        with mapped(self.optimizer), private.put_off_write_errors(self.deepspeed):
            # No `latest` file: DeepSpeed writes it without a barrier, so a kill can leave it naming a damaged
            # checkpoint.
            self.deepspeed.save_checkpoint(str(folder), tag=ENGINE_FOLDER, save_latest=False)

    def checkpoint_bytes(self) -> int:
        """About the size of what `save` writes on all ranks. Small files and headers are not counted."""
        stage = self.deepspeed.zero_optimization_stage()
        has_masters = stage > 0 or bool(private.masters(self.optimizer))
        per_trained = 4 * (len(private.MOMENTS) + has_masters + self.averages)  # all in fp32
        num_bytes = 0
        for parameter in self.module.parameters():
            num_elements = math.prod(private.whole_shape(parameter, stage == 3))
            num_bytes += num_elements * per_trained * parameter.requires_grad
            if stage < 3 or not parameter.requires_grad:  # ZeRO-3 stores its masters only
                num_bytes += num_elements * parameter.element_size()
        tensor_ranks = 1 if self.tensor_group is None else dist.get_world_size(self.tensor_group)
        return num_bytes * tensor_ranks

    def load(self, checkpoint: Path) -> None:
        """Load what `save` wrote with the same number of ranks and ZeRO stage and without NVMe, bit for bit.

        Raises:
            UserError: if the weights belong to another model, or a file holds more than a checkpoint does.
        """
        try:
            loaded, _ = self.deepspeed.load_checkpoint(str(checkpoint), tag=ENGINE_FOLDER)
        except RuntimeError as error:  # load_state_dict raises it for other shapes
            reason = str(error).strip().split("\n")[-1].strip()
            raise UserError(f"{checkpoint}: its weights do not fit this config's model: {reason}") from None
        assert loaded is not None, "DeepSpeed found no engine folder in a checkpoint that passed its manifest"

    def load_other_layout(self, checkpoint: Path, ranks: Ranks) -> None:
        """Load what `save` wrote on other ranks, at another ZeRO stage, or with or without NVMe.

        Raises:
            UserError: if the checkpoint is damaged, or of another model.
        """
        load_other_layout(self.deepspeed, checkpoint, ranks)

    def settle_average(self) -> bool:
        """Begin an average that a loaded checkpoint lacks, or drop one that is not wanted.

        Returns:
            whether it begins here, as the loaded weights.
        """
        return averaging.settle_average(self.optimizer)

    def gather_weights(self, ranks: Ranks) -> dict[str, torch.Tensor]:
        """The backbone's whole weights by its own names, in host memory of rank 0. Other ranks get none.

        Every rank calls this. ZeRO-3 gathers one parameter at a time, so no device holds all of them.
        """
        is_sharded = self.deepspeed.zero_optimization_stage() == 3
        weights = {}
        backbone: Any = self.module.backbone
        for name, parameter in backbone.named_parameters():
            with deepspeed.zero.GatheredParameters([parameter], enabled=is_sharded):
                whole = joined(parameter.detach(), split_dimension(name), ranks)
                if ranks.is_first:
                    weights[name] = whole.cpu().clone()
        return weights


def gradient_norm(parameters: list[nn.Parameter], tensor_group: dist.ProcessGroup | None) -> torch.Tensor:
    """The gradient norm of the whole model. Tensor ranks hold parts of some parameters and all of others."""
    parts: list[torch.Tensor] = []
    copies: list[torch.Tensor] = []
    for each in parameters:
        if each.grad is not None:
            (parts if private.is_part(each) else copies).append(each.grad)
    if tensor_group is None:
        return nn.utils.get_total_norm(copies)
    square = nn.utils.get_total_norm(parts).square()
    dist.all_reduce(square, group=tensor_group)
    return (square + nn.utils.get_total_norm(copies).square()).sqrt()


def initialise_engine(model: nn.Module, config: RunConfig, layout: BatchLayout, ranks: Ranks) -> Engine:
    """Hand the model to DeepSpeed, which moves it from the CPU, casts it and shards it as the config says."""
    private.forget_model_parallel_unit()
    if ranks.tp_size > 1:
        for name, parameter in model.named_parameters():
            if split_dimension(name) is not None:
                private.mark_as_part(parameter)
    if config.parallel.swaps:
        load_op("AsyncIOBuilder", "asynchronous I/O op")
    swaps_to = swap_folder(config, ranks.rank) if config.parallel.swaps else None
    num_shards = ranks.world_size // ranks.tp_size
    largest_shard = max(-(-parameter.numel() // num_shards) for parameter in model.parameters())
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=make_optimizer(model, config.optimizer, config.train.ema_decay),
        config=deepspeed_config(config, layout, ranks.device.type == "cuda", swaps_to, largest_shard),
        mpu=ModelParallelUnit(ranks) if ranks.tp_size > 1 else None,
        dist_init_required=False,
    )
    private.read_weights_only(engine)
    private.undo_first_step(engine.optimizer)
    return Engine(
        engine,
        config.optimizer.gradient_clipping,
        clips_itself(config),
        ranks.tp_group,
        mean_factor(layout, ranks),
    )


def mean_factor(layout: BatchLayout, ranks: Ranks) -> Fraction:
    """The factor of a micro-batch's summed loss that makes the step's gradient that of the mean over samples.

    DeepSpeed averages over micro-batches and over ranks. Ranks that share a sequence count as separate ranks
    in this average, although each has only a part of the loss.
    """
    num_averaged = layout.forwards_per_step * layout.dp_size * ranks.sp_size
    return Fraction(num_averaged, layout.global_batch_size)


class ModelParallelUnit:
    """The grid of ranks as DeepSpeed takes it (its `mpu`). Only the tensor axis is model parallelism.

    For DeepSpeed the sequence axis is part of data parallelism. Ranks along it hold the same weights, each
    sees a slice of the same rows, and their gradients are averaged like all others.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks

    def get_model_parallel_rank(self) -> int:
        return self.ranks.tp_rank

    def get_model_parallel_world_size(self) -> int:
        return self.ranks.tp_size

    def get_model_parallel_group(self) -> dist.ProcessGroup | None:
        return self.ranks.tp_group

    def get_data_parallel_rank(self) -> int:
        return self.ranks.rank // self.ranks.tp_size

    def get_data_parallel_world_size(self) -> int:
        return self.ranks.world_size // self.ranks.tp_size

    def get_data_parallel_group(self) -> dist.ProcessGroup | None:
        return self.ranks.replica_group
