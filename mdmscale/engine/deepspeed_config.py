"""Makes DeepSpeed's configuration dict from a RunConfig.

DeepSpeed silently accepts misspelled keys, so users never write any part of this dict.
"""

from pathlib import Path
from typing import Any

from mdmscale.config.parallel import (
    CUDA_BUCKET_SIZE,
    SWAPPED_GROUP_BUFFERS,
    SWAPPED_GROUP_SIZE,
    SWAPPED_PARAMETERS,
    ParallelSection,
)
from mdmscale.config.run import RunConfig
from mdmscale.parallel.batch_layout import BatchLayout


def deepspeed_config(
    config: RunConfig, layout: BatchLayout, on_cuda: bool, swap_folder: Path | None, largest_shard: int
) -> dict[str, Any]:
    """DeepSpeed's configuration for one rank.

    Args:
        swap_folder: folder of this rank's swap files; None if the config offloads nothing to NVMe.
        largest_shard: number of elements of a rank's shard of the largest parameter.
    """
    stage = config.parallel.zero_stage
    is_bf16 = config.model.dtype == "bf16"
    # A gradient sums many micro-batches, and a bf16 sum would lose small ones. ZeRO-0 does not offer fp32.
    grad_accum_dtype = "fp32" if stage > 0 or not is_bf16 else "bf16"
    zero = zero_options(config.parallel, on_cuda)
    if swap_folder is not None:
        zero |= swap_options(config.parallel, swap_folder, largest_shard)
    # DeepSpeed treats ranks that share a sequence as data-parallel ranks, see ModelParallelUnit.
    num_averaged = layout.dp_size * config.parallel.sequence * layout.forwards_per_step
    values = {
        "train_batch_size": layout.micro_batch_size * num_averaged,
        "train_micro_batch_size_per_gpu": layout.micro_batch_size,
        "gradient_accumulation_steps": layout.forwards_per_step,
        "gradient_clipping": 0.0 if clips_itself(config) else config.optimizer.gradient_clipping,
        "bf16": {"enabled": is_bf16},
        "data_types": {"grad_accum_dtype": grad_accum_dtype},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # torch's AdamW also updates offloaded states
        "steps_per_print": 2**31,
    }
    if config.parallel.quantized_gradients:
        values["communication_data_type"] = "fp16"  # the kernel reads all gradients as fp16
    return values


def clips_itself(config: RunConfig) -> bool:
    """Whether Engine clips gradients: DeepSpeed reports no gradient norm for ZeRO-0 in fp32."""
    return config.parallel.zero_stage == 0 and config.model.dtype == "fp32"


def zero_options(options: ParallelSection, on_cuda: bool) -> dict[str, Any]:
    """The zero_optimization section, without NVMe. The hardware decides what the config leaves open."""
    values: dict[str, Any] = {"stage": options.zero_stage}
    if options.zero_stage == 0:
        return values
    values["overlap_comm"] = on_cuda if options.overlap_comm is None else options.overlap_comm
    bucket_size = options.bucket_size or (CUDA_BUCKET_SIZE if on_cuda else None)
    if bucket_size is not None:
        values |= {"reduce_bucket_size": bucket_size, "allgather_bucket_size": bucket_size}
    for key, device in (
        ("offload_optimizer", options.offload_optimizer),
        ("offload_param", options.offload_parameters),
    ):
        if device == "cpu":
            values[key] = {"device": device, "pin_memory": on_cuda}
    if options.hpz_partition_size > 1:
        values["zero_hpz_partition_size"] = options.hpz_partition_size
    if options.quantized_weights:
        values["zero_quantized_weights"] = True
    if options.quantized_gradients:
        values["zero_quantized_gradients"] = True
    return values


def swap_options(options: ParallelSection, folder: Path, largest_shard: int) -> dict[str, Any]:
    """The options that NVMe offload adds to the zero_optimization section."""
    disk = {"device": "nvme", "nvme_path": str(folder)}
    values: dict[str, Any] = {
        "offload_optimizer": {**disk, "buffer_count": SWAPPED_GROUP_BUFFERS},
        "sub_group_size": SWAPPED_GROUP_SIZE,
    }
    if options.offload_parameters == "nvme":
        values["offload_param"] = {
            **disk,
            "buffer_count": SWAPPED_PARAMETERS,
            "buffer_size": SWAPPED_GROUP_SIZE + largest_shard,  # one buffer must hold a whole sub-group
            "max_in_cpu": 0,
        }
        # Prefetching counts a parameter that is used twice, such as the head's, as two parameters, and fails.
        values["stage3_prefetch_bucket_size"] = 0
    return values
