"""Operations of a step, and the seconds that a GPU takes for them.

A pass over the layers takes the time of its matrix products and attention at the GPU's sustained rate, plus
that of element-wise kernels at memory bandwidth, and at least the time that the host needs to launch its
kernels. Attention is bidirectional, so all pairs of positions in a row count (half of them if it is causal).
"""

from dataclasses import dataclass

from mdmscale.analysis.planning.hardware import Gpu
from mdmscale.analysis.planning.workload import FP32, Workload
from mdmscale.models.flops import count_flops

BANDWIDTH_SUSTAINED = 0.8  # share of the memory's bandwidth that element-wise kernels reach
LAUNCH_SECONDS = 0.25e-3  # for a layer and pass: about 40 kernels of transformers' layers in sequence
STEP_BYTES = 44  # for an element: 28 in AdamW's kernel, the rest in norm, clipping and the bf16 weight
HOST_BANDWIDTH = 100e9  # bytes a second that the CPUs of a node move in an offloaded step
HOST_STEP_BYTES = 28
DISK_BANDWIDTH = 5e9  # bytes a second of a node's NVMe storage; a guess, for one fast disk


@dataclass(frozen=True)
class Compute:
    """Seconds of one rank in a step, without communication."""

    forward: float  # of all forwards of the step, as are those below
    backward: float  # includes recomputation
    head: float
    optimizer: float
    disk: float  # reads and writes of what is offloaded to nvme

    @property
    def seconds(self) -> float:
        return self.forward + self.backward + self.head + self.optimizer + self.disk


def forward_flops(workload: Workload) -> float:
    """Operations of a token in the forward of all layers: 2 for a matrix element, 4 x query for a pair."""
    shape = workload.shape
    return shape.layers * (2 * shape.layer_matrices + 4 * shape.query * workload.pairs_per_token)


def model_flops(workload: Workload) -> float:
    """Operations of a step over all ranks, as MFU counts them: without recomputation."""
    tokens = workload.tokens_per_step * workload.rows_per_sample
    return count_flops(workload.shape, workload.is_frozen).of(
        tokens, tokens * workload.pairs_per_token, tokens * workload.masked_share
    )


def forward_seconds(workload: Workload, gpu: Gpu, tokens: float) -> float:
    """Seconds of one forward over the layers, for `tokens` on this rank."""
    products = tokens * forward_flops(workload) / workload.parallel.tensor / flops_per_second(workload, gpu)
    return max(products + elementwise_seconds(workload, gpu, tokens), workload.shape.layers * LAUNCH_SECONDS)


def recomputation_seconds(workload: Workload, gpu: Gpu) -> float:
    """Recomputation in the backward of one forward: nothing, element-wise kernels, or the whole pass."""
    match workload.config.model.activation_checkpointing:
        case "none":
            return 0.0
        case "selective":
            # in both passes its dispatch modes inspect each operation on the host, before the launch
            return max(
                elementwise_seconds(workload, gpu, workload.tokens),
                2 * workload.shape.layers * LAUNCH_SECONDS,
            )
        case "full":
            return forward_seconds(workload, gpu, workload.tokens)


def elementwise_seconds(workload: Workload, gpu: Gpu, tokens: float) -> float:
    """Seconds of the element-wise kernels of all layers, forward."""
    moved = tokens * workload.shape.layers * elementwise_bytes(workload)
    return moved / (gpu.bandwidth * BANDWIDTH_SUSTAINED)


def elementwise_bytes(workload: Workload) -> float:
    """Bytes that the element-wise kernels of one layer move in forward for a token, as in transformers.

    Counted in vectors: the two norms and residual sums move 40 of hidden_size, the rotation 10 of queries and
    keys, and the MLP's gate 5 of intermediate_size.
    """
    shape, tensor = workload.shape, workload.parallel.tensor
    vectors = 40 * shape.hidden + (10 * (shape.query + shape.key) + 5 * shape.inner) / tensor
    return workload.width * vectors


def flops_per_second(workload: Workload, gpu: Gpu) -> float:
    """Operations a second that the GPU sustains."""
    return (gpu.peak if workload.width == 2 else gpu.peak_fp32) * gpu.sustained


def head_seconds(workload: Workload, gpu: Gpu) -> float:
    """Seconds of the head with its gradients, for one forward: products, softmax, fp32 sum of its weight."""
    shape, tensor = workload.shape, workload.parallel.tensor
    masked = workload.tokens * workload.masked_share
    num_products = 2 if workload.is_frozen else 3
    flops = num_products * 2 * masked * shape.embedding / tensor
    products = flops / flops_per_second(workload, gpu)
    softmax = softmax_bytes(workload) * masked * shape.vocab / tensor
    chunks = -(-masked // workload.head_chunk)
    summed = 0 if workload.is_frozen else chunks * shape.embedding / tensor * (2 * workload.width + 8)
    return products + (softmax + summed) / (gpu.bandwidth * BANDWIDTH_SUSTAINED)


def softmax_bytes(workload: Workload) -> int:
    """Bytes moved to turn one logit into its gradient.

    The fused softmax reads and writes in two kernels. Otherwise each operation reads or writes the logit:
    seven times in fp32, and in bf16 also for the casts before and after.
    """
    if workload.fuses_softmax:
        return 4 * workload.width
    return 7 * FP32 + (2 * (workload.width + FP32) if workload.width < FP32 else 0)


def optimizer_seconds(workload: Workload, gpu: Gpu, gpus_per_node: int) -> float:
    """Seconds of AdamW on this rank's shard, or on the host with transfers of gradients and weights."""
    elements = workload.num_trained / (workload.shards if workload.parallel.zero_stage > 0 else 1)
    if workload.parallel.offload_optimizer == "none":
        return elements * STEP_BYTES / (gpu.bandwidth * BANDWIDTH_SUSTAINED)
    moved = elements * (4 + workload.width) / gpu.host_link
    return moved + elements * gpus_per_node * HOST_STEP_BYTES / HOST_BANDWIDTH


def disk_seconds(workload: Workload, gpus_per_node: int) -> float:
    """Seconds of disk traffic.

    In a step, master weights, moments and gradients are read and written once. Offloaded parameters are read
    in each pass and written once.
    """
    if not workload.parallel.swaps:
        return 0.0
    moved = workload.num_trained / workload.shards * 2 * 16
    if workload.parallel.offload_parameters == "nvme":
        moved += workload.num_parameters / workload.shards * workload.width * (2 * workload.forwards + 1)
    return moved * gpus_per_node / DISK_BANDWIDTH


def compute_of(workload: Workload, gpu: Gpu, gpus_per_node: int) -> Compute:
    """The seconds of a step on one rank."""
    forward = forward_seconds(workload, gpu, workload.tokens)
    backward = (1 if workload.is_frozen else 2) * forward + recomputation_seconds(workload, gpu)
    return Compute(
        forward=workload.forwards * forward,
        backward=workload.forwards * backward,
        head=workload.forwards * head_seconds(workload, gpu),
        optimizer=optimizer_seconds(workload, gpu, gpus_per_node),
        disk=disk_seconds(workload, gpus_per_node),
    )
