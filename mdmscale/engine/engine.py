"""RunConfig to DeepSpeed: the one place where its configuration dict is made."""

from dataclasses import dataclass
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.runtime.utils import is_model_parallel_parameter
from deepspeed.utils import groups
from torch import nn

from mdmscale.config.parallel import CUDA_BUCKET_SIZE, ParallelSection
from mdmscale.config.run import RunConfig
from mdmscale.engine import nvme
from mdmscale.engine.optim import make_optimizer
from mdmscale.models.compiling import can_compile, needs
from mdmscale.parallel.batch_layout import BatchLayout
from mdmscale.parallel.ranks import Ranks
from mdmscale.system.errors import UserError


@dataclass(frozen=True)
class Engine:
    """A DeepSpeed engine behind two verbs, so that every ZeRO stage clips and reports the same way."""

    deepspeed: Any
    gradient_clipping: float
    clips_itself: bool
    tensor_group: dist.ProcessGroup | None

    def accumulate(self, loss: torch.Tensor, is_last: bool) -> None:
        """Backward of one micro-batch's mean loss; DeepSpeed averages over micro-batches and ranks.

        After all but the last micro-batch of a step this also moves DeepSpeed's accumulation on.
        """
        self.deepspeed.backward(loss)
        if not is_last:
            self.deepspeed.step()

    def step(self) -> float:
        """Clip and apply the step's gradients. Returns the global gradient norm before clipping.

        Where that is not finite the weights stay as they are.
        """
        if self.clips_itself:
            parameters = list(self.deepspeed.module.parameters())
            norm = gradient_norm(parameters, self.tensor_group)
            nn.utils.clip_grads_with_norm_(parameters, self.gradient_clipping or float("inf"), norm)
            if not norm.isfinite():  # as DeepSpeed does in the other stages; NaN would get into the weights
                self.deepspeed.module.zero_grad()
            self.deepspeed.step()
        else:
            self.deepspeed.step()
            norm = self.deepspeed.get_global_grad_norm()
        return float(norm)


def gradient_norm(parameters: list[nn.Parameter], tensor_group: dist.ProcessGroup | None) -> torch.Tensor:
    """The norm of the whole model's gradient, of which tensor ranks hold parts and copies."""
    parts: list[torch.Tensor] = []
    copies: list[torch.Tensor] = []
    for each in parameters:
        if each.grad is not None:
            (parts if is_model_parallel_parameter(each) else copies).append(each.grad)
    if tensor_group is None:
        return nn.utils.get_total_norm(copies)
    square = nn.utils.get_total_norm(parts).square()
    dist.all_reduce(square, group=tensor_group)
    return (square + nn.utils.get_total_norm(copies).square()).sqrt()


def clips_itself(config: RunConfig) -> bool:
    """Whether clipping is ours: DeepSpeed reports no gradient norm for ZeRO-0 in fp32."""
    return config.parallel.zero_stage == 0 and config.model.dtype == "fp32"


def deepspeed_config(config: RunConfig, layout: BatchLayout, on_cuda: bool) -> dict[str, Any]:
    """DeepSpeed's configuration. It accepts misspelled keys in silence, so users never write it."""
    stage = config.parallel.zero_stage
    is_bf16 = config.model.dtype == "bf16"
    # Many micro-batches add up to one gradient; in bf16 small ones would be lost. ZeRO-0 has no such choice.
    grad_accum_dtype = "fp32" if stage > 0 or not is_bf16 else "bf16"
    quantised = {"communication_data_type": "fp16"} if config.parallel.quantized_gradients else {}
    turns = layout.forwards  # each is a micro-batch of its own to DeepSpeed
    return {
        # Ranks that share a sequence are data-parallel ones to DeepSpeed, see ModelParallelUnit.
        "train_batch_size": layout.global_batch_size * turns * config.parallel.sequence,
        "train_micro_batch_size_per_gpu": layout.micro_batch_size,
        "gradient_accumulation_steps": layout.gradient_accumulation_steps * turns,
        "gradient_clipping": 0.0 if clips_itself(config) else config.optimizer.gradient_clipping,
        "bf16": {"enabled": is_bf16},
        "data_types": {"grad_accum_dtype": grad_accum_dtype},
        "zero_optimization": zero_options(config.parallel, on_cuda),
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # torch's AdamW steps offloaded states, too
        "steps_per_print": 2**31,
        **quantised,  # whose kernel reads gradients as fp16, whatever they are
    }


def zero_options(options: ParallelSection, on_cuda: bool) -> dict[str, Any]:
    """The zero_optimization section: what the hardware wants where the config leaves it open."""
    values: dict[str, Any] = {"stage": options.zero_stage}
    if options.zero_stage == 0:
        return values
    values["overlap_comm"] = on_cuda if options.overlap_comm is None else options.overlap_comm
    bucket_size = options.bucket_size or (CUDA_BUCKET_SIZE if on_cuda else None)
    if bucket_size is not None:
        values |= {"reduce_bucket_size": bucket_size, "allgather_bucket_size": bucket_size}
    for key, place in (
        ("offload_optimizer", options.offload_optimizer),
        ("offload_param", options.offload_parameters),
    ):
        if place == "cpu":
            values[key] = {"device": place, "pin_memory": on_cuda}
    if options.hpz_partition_size > 1:
        values["zero_hpz_partition_size"] = options.hpz_partition_size
    if options.quantized_weights:
        values["zero_quantized_weights"] = True
    if options.quantized_gradients:
        values["zero_quantized_gradients"] = True
    return values


def check_hardware(config: RunConfig, device: torch.device) -> None:
    """Refuse what only CUDA or a compiler can do, where there is none.

    Raises:
        UserError: naming the options.
    """
    problems = [
        f"parallel.{name} = true: DeepSpeed's quantisation kernels need a CUDA device, and there is none here"
        for name in ("quantized_weights", "quantized_gradients")
        if getattr(config.parallel, name) and device.type != "cuda"
    ]
    if not can_compile(device):
        problems += [
            f"model.{key}: torch.compile needs {needs(device)}; without, set the option to {other}"
            for key, other, is_on in (
                ("compile = true", "false", config.model.compile),
                ("head = fused", "chunked", config.model.head == "fused"),
            )
            if is_on
        ]
    if problems:
        raise UserError(*problems)


def initialise_engine(model: nn.Module, config: RunConfig, layout: BatchLayout, ranks: Ranks) -> Engine:
    """Hand the model (on the CPU) to DeepSpeed, which moves, casts and shards it as the config says."""
    groups.mpu = None  # DeepSpeed keeps that of an earlier engine in this process
    on_cuda = ranks.device.type == "cuda"
    options = deepspeed_config(config, layout, on_cuda)
    if config.parallel.swaps:
        num_shards = ranks.world_size // ranks.tp_size
        largest = max(-(-parameter.numel() // num_shards) for parameter in model.parameters())
        options["zero_optimization"] |= nvme.offload_options(config, ranks.rank, largest)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=make_optimizer(model, config.optimizer),
        config=options,
        mpu=ModelParallelUnit(ranks) if ranks.tp_size > 1 else None,
        dist_init_required=False,
    )
    return Engine(engine, config.optimizer.gradient_clipping, clips_itself(config), ranks.tp_group)


class ModelParallelUnit:
    """The grid in the words that DeepSpeed asks in (its `mpu`): only the tensor axis is model parallelism.

    To DeepSpeed the sequence axis is part of data parallelism: such ranks hold the same weights, each sees a
    slice of the same rows, and their gradients are averaged like all others.
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
