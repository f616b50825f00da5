"""Operations of a step, and the seconds that a GPU takes for them.

A pass over the layers is matrix products and attention at the GPU's sustained rate, then element-wise kernels
at its memory's, and never less than the host needs to launch its kernels. Attention is not causal: every
token meets every other of its row, with no half of it left out.
"""

from dataclasses import dataclass

from mdmscale.analysis.planning.hardware import Gpu
from mdmscale.analysis.planning.job import FP32, Job
from mdmscale.models.flops import count_flops

BANDWIDTH_SUSTAINED = 0.8  # share of the memory's bandwidth that element-wise kernels reach
LAUNCH_SECONDS = 0.25e-3  # a layer and pass: about 40 kernels of transformers' layers, one after another
STEP_BYTES = 44  # an element: 28 in AdamW's kernel, the rest for the norm, clipping and the weight in bf16
HOST_BANDWIDTH = 100e9  # bytes a second that a node's processors move in an offloaded step
HOST_STEP_BYTES = 28
DISK_BANDWIDTH = 5e9  # bytes a second of a node's NVMe disks: one good disk; a guess


@dataclass(frozen=True)
class Compute:
    """Seconds of one rank in a step, without communication."""

    forward: float  # all forwards of the step; so below
    backward: float  # with recomputation
    head: float
    optimizer: float
    disk: float  # reading and writing what is offloaded to nvme

    @property
    def seconds(self) -> float:
        return self.forward + self.backward + self.head + self.optimizer + self.disk


def forward_flops(job: Job) -> float:
    """Operations of a token in all layers forward: 2 a matrix element, 4 query widths a pair."""
    shape = job.shape
    return shape.layers * (2 * shape.layer_matrices + 4 * shape.query * job.length)


def model_flops(job: Job) -> float:
    """Operations that a step of the whole job must do, which MFU counts: recomputation adds nothing."""
    tokens = job.tokens_per_step * job.config.diffusion.rows_per_sample
    return count_flops(job.shape, job.is_frozen).of(tokens, tokens * job.length, tokens * job.masked_share)


def forward_seconds(job: Job, gpu: Gpu, tokens: float) -> float:
    """One pass forward over the layers, of `tokens` on this rank."""
    products = tokens * forward_flops(job) / job.parallel.tensor / rate(job, gpu)
    return max(products + elementwise_seconds(job, gpu, tokens), job.shape.layers * LAUNCH_SECONDS)


def repeated_seconds(job: Job, gpu: Gpu) -> float:
    """What the backward of one forward does again: nothing, element-wise kernels, or the whole pass."""
    match job.config.model.activation_checkpointing:
        case "none":
            return 0.0
        case "selective":
            # its modes look at each operation, in both passes, before the host launches it
            return max(elementwise_seconds(job, gpu, job.tokens), 2 * job.shape.layers * LAUNCH_SECONDS)
        case "full":
            return forward_seconds(job, gpu, job.tokens)


def elementwise_seconds(job: Job, gpu: Gpu, tokens: float) -> float:
    """All layers' element-wise kernels, forward."""
    moved = tokens * job.shape.layers * elementwise_bytes(job)
    return moved / (gpu.bandwidth * BANDWIDTH_SUSTAINED)


def elementwise_bytes(job: Job) -> float:
    """Bytes that a layer's element-wise kernels move forward, a token, as transformers writes them.

    In vectors of bf16: two norms and residual sums take 40 of the hidden size, rotation 10 of queries and
    keys, and the MLP's gate 5 of its width.
    """
    shape, tensor = job.shape, job.parallel.tensor
    vectors = 40 * shape.hidden + (10 * (shape.query + shape.key) + 5 * shape.inner) / tensor
    return job.width * vectors


def rate(job: Job, gpu: Gpu) -> float:
    """Operations a second."""
    return (gpu.peak if job.width == 2 else gpu.peak_fp32) * gpu.sustained


def head_seconds(job: Job, gpu: Gpu) -> float:
    """The head of one forward with its gradients: products, softmax, and its weight's fp32 sum."""
    shape, tensor = job.shape, job.parallel.tensor
    masked = job.tokens * job.masked_share
    products = (2 if job.is_frozen else 3) * 2 * masked * shape.embedding / tensor / rate(job, gpu)
    softmax = softmax_bytes(job) * masked * shape.vocab / tensor
    chunks = -(-masked // job.head_chunk)
    summed = 0 if job.is_frozen else chunks * shape.embedding / tensor * (2 * job.width + 8)
    return products + (softmax + summed) / (gpu.bandwidth * BANDWIDTH_SUSTAINED)


def softmax_bytes(job: Job) -> int:
    """Bytes that become of a logit its gradient: in two kernels, or read or written by each operation.

    Of these are seven in fp32, and bf16 is cast before and after.
    """
    if job.fuses_softmax:
        return 4 * job.width
    return 7 * FP32 + (2 * (job.width + FP32) if job.width < FP32 else 0)


def optimizer_seconds(job: Job, gpu: Gpu, gpus_per_node: int) -> float:
    """AdamW on this rank's shard, or on the host with gradients going down and weights up."""
    elements = job.num_trained / (job.shards if job.parallel.zero_stage > 0 else 1)
    if job.parallel.offload_optimizer == "none":
        return elements * STEP_BYTES / (gpu.bandwidth * BANDWIDTH_SUSTAINED)
    moved = elements * (4 + job.width) / gpu.host_link
    return moved + elements * gpus_per_node * HOST_STEP_BYTES / HOST_BANDWIDTH


def disk_seconds(job: Job, gpus_per_node: int) -> float:
    """Masters, moments and gradients go both ways once a step, parameters one way in each pass."""
    if not job.parallel.swaps:
        return 0.0
    moved = job.num_trained / job.shards * 2 * 16
    if job.parallel.offload_parameters == "nvme":
        moved += job.num_parameters / job.shards * job.width * (2 * job.forwards + 1)
    return moved * gpus_per_node / DISK_BANDWIDTH


def compute_of(job: Job, gpu: Gpu, gpus_per_node: int) -> Compute:
    """The seconds of a step on one rank."""
    forward = forward_seconds(job, gpu, job.tokens)
    backward = (1 if job.is_frozen else 2) * forward + repeated_seconds(job, gpu)
    return Compute(
        forward=job.forwards * forward,
        backward=job.forwards * backward,
        head=job.forwards * head_seconds(job, gpu),
        optimizer=optimizer_seconds(job, gpu, gpus_per_node),
        disk=disk_seconds(job, gpus_per_node),
    )
