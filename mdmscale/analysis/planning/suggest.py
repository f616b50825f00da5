"""The fastest layout that fits.

A layout is the micro-batch, ZeRO stage, tensor and sequence sizes, and activation checkpointing.
"""

from collections.abc import Iterator
from itertools import product

from mdmscale.analysis.planning.hardware import Cluster
from mdmscale.analysis.planning.plan import Plan, make_plan
from mdmscale.config.parallel import ParallelSection
from mdmscale.config.run import RunConfig
from mdmscale.config.section import Recomputation
from mdmscale.models.shape import ModelShape, indivisible

SHARING: tuple[int, ...] = (1, 2, 4, 8)  # tensor and sequence sizes that are tried
RECOMPUTATIONS: tuple[Recomputation, ...] = ("none", "selective", "full")
WITHIN = 1.02  # layouts within 2% of the fastest count as equal, and the simplest of them is chosen


def suggest(
    config: RunConfig, shape: ModelShape, cluster: Cluster, token_budget: float | None = None
) -> Plan | None:
    """The simplest plan within 2% of the fastest that fits, at the same global batch; None if none fits."""
    plans = [make_plan(each, shape, cluster, token_budget) for each in candidates(config, shape, cluster)]
    fitting = [plan for plan in plans if plan.fits]
    if not fitting:
        return None
    fastest = min(plan.step_seconds for plan in fitting)
    return min((plan for plan in fitting if plan.step_seconds <= WITHIN * fastest), key=complexity)


def complexity(plan: Plan) -> tuple[float, ...]:
    """A key for sorting.

    Sharing a model or a sequence is most complex, then recomputation, then the stage.
    """
    config = plan.workload.config
    sharing = config.parallel.tensor * config.parallel.sequence
    checkpointing = RECOMPUTATIONS.index(config.model.activation_checkpointing)
    return sharing, checkpointing, config.parallel.zero_stage, plan.step_seconds


def candidates(config: RunConfig, shape: ModelShape, cluster: Cluster) -> Iterator[RunConfig]:
    """Configs that differ only in layout and divide the model, the GPUs and the global batch.

    Options that only one ZeRO stage has are reset for the others. A model with adapters is not split over
    ranks. A compiled model is neither split over ranks nor sharded.
    """
    tensors = SHARING if config.model.lora is None else (1,)
    # In bf16, stage 0 would sum gradients in bf16.
    stages = [0, 1, 2, 3] if config.model.dtype == "fp32" else [1, 2, 3]
    sequences = SHARING if config.model.attention == "sdpa" else (1,)
    recomputations = RECOMPUTATIONS
    if config.model.attention == "flash_attention_2":
        recomputations = ("none", "full")
    if config.model.compile:
        tensors, sequences, recomputations = (1,), (1,), ("none", "full")
        stages.remove(3)
    for tensor, sequence in product(tensors, sequences):
        ranks, rest = divmod(cluster.num_gpus, tensor * sequence)
        sharing = config.parallel.model_copy(update={"tensor": tensor, "sequence": sequence})
        is_near = tensor == 1 or cluster.gpus_per_node % tensor == 0
        if rest or not is_near or config.train.global_batch_size % ranks:
            continue
        if indivisible(shape, tensor, sequence):
            continue
        for micro in micro_batches(config.train.global_batch_size // ranks):
            for stage, checkpointing in product(stages, recomputations):
                parallel = at_stage(sharing, stage)
                if ranks * sequence % parallel.hpz_partition_size:
                    continue
                yield config.model_copy(
                    update={
                        "parallel": parallel,
                        "train": config.train.model_copy(update={"micro_batch_size": micro}),
                        "model": config.model.model_copy(update={"activation_checkpointing": checkpointing}),
                    }
                )


def at_stage(parallel: ParallelSection, stage: int) -> ParallelSection:
    """The section at another ZeRO stage, with options that this stage lacks reset."""
    values: dict[str, object] = {"zero_stage": stage}
    if stage < 3:
        values |= {"offload_parameters": "none", "hpz_partition_size": 1}
        values |= {"quantized_weights": False, "quantized_gradients": False}
        if parallel.swaps:
            values |= {"offload_optimizer": "cpu", "nvme_path": None}
    if stage == 0:
        values |= {"offload_optimizer": "none", "overlap_comm": None, "bucket_size": None}
    if parallel.tensor > 1:
        values |= {"hpz_partition_size": 1, "quantized_gradients": False}
    return parallel.model_copy(update=values)


def micro_batches(most: int) -> Iterator[int]:
    """Powers of two that divide `most`, and `most` itself."""
    sizes = {2**power for power in range(8) if most % 2**power == 0}
    yield from sorted(sizes | ({most} if most < 256 else set()))


def layout_keys(config: RunConfig) -> dict[str, object]:
    """The keys that `candidates` varies, as section.key -> value."""
    return {
        "train.micro_batch_size": config.train.micro_batch_size,
        "parallel.zero_stage": config.parallel.zero_stage,
        "parallel.tensor": config.parallel.tensor,
        "parallel.sequence": config.parallel.sequence,
        "model.activation_checkpointing": config.model.activation_checkpointing,
    }


def scan(
    config: RunConfig, shape: ModelShape, cluster_of: dict[int, Cluster], token_budget: float | None
) -> dict[int, Plan]:
    """The suggested plan for each number of GPUs that has one."""
    plans = {}
    for num_gpus, cluster in cluster_of.items():
        plan = suggest(config, shape, cluster, token_budget)
        if plan is not None:
            plans[num_gpus] = plan
    return plans
