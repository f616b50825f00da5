"""Bytes of a rank, by what they are for: what DeepSpeed allocates and what autograd keeps.

Weights, gradients and optimizer state are counted from DeepSpeed's wrappers as they are, activations from the
tensors that the layers of transformers save for backward; tests hold both against real engines and models.
"""

from dataclasses import dataclass

from mdmscale.analysis.planning.hardware import GIB, Gpu
from mdmscale.analysis.planning.job import FP32, LIVE_PARAMETERS, Job
from mdmscale.config.parallel import (
    CUDA_BUCKET_SIZE,
    SWAPPED_GROUP_BUFFERS,
    SWAPPED_GROUP_SIZE,
    SWAPPED_PARAMETERS,
)

# CUDA context, NCCL, cuBLAS; and what the allocator loses between blocks.
RESERVED, FRAGMENTATION = 2 * GIB, 0.05


@dataclass(frozen=True)
class Memory:
    """Bytes.

    weights to buffers: on the device, while training. The head is done before a checkpointed layer is
    rebuilt, so activations count of that layer what it needs beyond the head. probe and step: what P-POTS's
    forwards and the optimizer step need in place of activations, head and buffers. host: what one rank keeps
    in host memory; loading: what it holds there while the model is loaded; disk: what it keeps in files.
    """

    weights: float
    gradients: float
    optimizer: float
    activations: float
    head: float
    buffers: float
    probe: float
    step: float
    host: float
    loading: float
    disk: float

    @property
    def parts(self) -> dict[str, float]:
        names = ("weights", "gradients", "optimizer", "activations", "head", "buffers")
        return {name: getattr(self, name) for name in names}

    @property
    def states(self) -> float:
        return self.weights + self.gradients + self.optimizer

    @property
    def phases(self) -> dict[str, float]:
        """The most that is allocated in each phase of a run."""
        forward_and_backward = self.activations + self.head + self.buffers
        phases = {"training": forward_and_backward, "optimizer step": self.step, "P-POTS probe": self.probe}
        return {name: self.states + extra for name, extra in phases.items()}

    @property
    def peak(self) -> float:
        return max(self.phases.values())

    def needed(self) -> float:
        """What a device must have: the peak, the allocator's losses, and what CUDA takes."""
        return self.peak * (1 + FRAGMENTATION) + RESERVED

    def fits(self, gpu: Gpu) -> bool:
        return self.needed() <= gpu.memory


def memory_of(job: Job) -> Memory:
    """The memory of one rank of `job`."""
    parallel = job.parallel
    stage, shards = parallel.zero_stage, job.shards
    weights = job.num_parameters * job.width / (shards if stage == 3 else 1)
    gradients, optimizer = state_bytes(job)
    host = disk = 0.0
    if parallel.offload_optimizer != "none":
        summed = job.num_trained * FP32 / shards  # gradients
        host += summed + (optimizer if parallel.offload_optimizer == "cpu" else swap_buffer_bytes(job))
        disk += optimizer + summed if parallel.swaps else 0.0
        optimizer, gradients = 0.0, job.num_trained * job.width if stage == 1 else 0.0
    if parallel.offload_parameters == "cpu":
        host, weights = host + weights, 0.0
    elif parallel.offload_parameters == "nvme":
        disk, weights = disk + weights, 0.0
    if parallel.hpz_partition_size > 1:
        weights += job.num_parameters * job.width / parallel.hpz_partition_size
    head = head_bytes(job, job.tokens, with_gradients=True)
    return Memory(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        activations=activation_bytes(job) + max(0.0, rebuilt_bytes(job) - head),
        head=head,
        buffers=buffer_bytes(job),
        probe=probe_bytes(job),
        step=step_bytes(job),
        host=host,
        loading=job.shape.num_parameters * job.width,
        disk=disk,
    )


def swap_buffer_bytes(job: Job) -> float:
    """What passes through host memory on its way from and to the disk: groups of masters, and parameters."""
    # elements of a rank, of the largest parameter
    largest = max(job.shape.embedding, job.shape.hidden * job.shape.inner) / job.shards
    group = min(SWAPPED_GROUP_SIZE + largest, job.num_trained / job.shards)
    parameters = SWAPPED_PARAMETERS * (SWAPPED_GROUP_SIZE + largest) * job.width
    return SWAPPED_GROUP_BUFFERS * FP32 * group + (
        parameters if job.parallel.offload_parameters == "nvme" else 0.0
    )


def state_bytes(job: Job) -> tuple[float, float]:
    """Gradients and optimizer state of what is trained, before any offload.

    fp32 masters and Adam's two moments, 12 bytes an element (of fp32 weights ZeRO keeps a master too, stage 0
    does not), sharded from stage 1. Gradients are whole up to stage 1, where bf16 ones stay beside their fp32
    sums, and sharded sums from stage 2.
    """
    stage, trained, shards = job.parallel.zero_stage, job.num_trained, job.shards
    is_bf16 = job.width == 2
    if stage == 0:
        return trained * job.width, trained * (12 if is_bf16 else 8)
    if stage == 1:
        return trained * (job.width + FP32 if is_bf16 else FP32), trained * 12 / shards
    return trained * FP32 / shards, trained * 12 / shards


def layer_bytes(job: Job) -> float:
    """What one decoder layer saves for backward, a token.

    A norm saves its input in fp32 and what it made of it, and the projections save theirs; attention saves
    queries, keys, values, output and a log-sum a head; the MLP saves four vectors of its own width. Key heads
    are repeated to the number of query heads where attention gets a mask; one of pairs is saved, too.
    """
    shape, width, tensor, options = job.shape, job.width, job.parallel.tensor, job.config.model
    query, key, heads = shape.query / tensor, shape.key / tensor, shape.heads / tensor
    pairs = pair_bytes(job)
    is_padded = job.rows_may_be_padded and not job.layout.packs and job.parallel.sequence == 1
    is_masked = pairs > 0 or (is_padded and options.attention == "sdpa")
    is_repeated = is_masked or (job.parallel.sequence > 1 and shape.key_heads % job.parallel.sequence > 0)
    norms = 2 * ((FP32 + 2 * width) * shape.hidden + FP32)
    attention = width * (2 * query + 2 * (query if is_repeated else key)) + pairs
    if options.attention != "eager":
        attention += FP32 * heads
    if job.parallel.sequence > 1 or (job.layout.packs and job.rows_may_be_padded):
        attention += width * query  # the output as slices, or all rows', beside that of whole rows
    if shape.has_head_norms:
        attention += (FP32 + width) * (query + key) + FP32 * (heads + shape.key_heads / tensor)
    adapters = 0.0 if options.lora is None else width * options.lora.rank * len(shape.linears)
    return norms + attention + 4 * width * shape.inner / tensor + adapters


def pair_bytes(job: Job) -> float:
    """What attention saves of pairs of positions, a layer and token."""
    options = job.config.model
    if options.attention == "eager":
        scores = FP32 + (job.width if job.width < FP32 else 0)
        return job.shape.heads / job.parallel.tensor * job.length * scores
    if options.attention_annealing_steps == 0:
        return 0.0  # a mask of padding is one of positions
    return job.width * job.length * job.parallel.sequence


def activation_bytes(job: Job) -> float:
    """What is kept when forward is done: all layers' tensors and the last norm's."""
    layer = layer_bytes(job) if job.config.model.activation_checkpointing == "none" else kept_bytes(job)
    last_norm = (FP32 + job.width) * job.shape.hidden
    return job.tokens * (job.shape.layers * layer + last_norm)


def kept_bytes(job: Job) -> float:
    """With checkpointing, what one decoder layer keeps for backward, a token.

    Its input; when that is selective, the outputs of attention, with its log-sum, and of all products but the
    last, too.
    """
    shape, width, tensor, options = job.shape, job.width, job.parallel.tensor, job.config.model
    if options.activation_checkpointing == "full":
        return width * shape.hidden
    products = (shape.query + 2 * shape.key + 2 * shape.inner) / tensor + 2 * shape.hidden
    attention = 0.0 if options.attention == "eager" else (width * shape.query + FP32 * shape.heads) / tensor
    adapters = 0.0
    if options.lora is not None:  # both products of each
        adapted = [shape.linears[name][1] for name in options.lora.target_modules or shape.linears]
        adapters = width * (sum(adapted) + options.lora.rank * len(adapted))
    return width * products + attention + adapters


def rebuilt_bytes(job: Job) -> float:
    """With checkpointing: one layer made anew in backward, and gradients of its widest part.

    What the layer had kept beside its input becomes part of that.
    """
    if job.config.model.activation_checkpointing == "none":
        return 0.0
    gradients = job.width * (job.shape.inner / job.parallel.tensor + job.shape.hidden)
    anew = layer_bytes(job) + job.width * job.shape.hidden - kept_bytes(job)
    return job.tokens * (anew + gradients)


def head_bytes(job: Job, num_masked: float, with_gradients: bool) -> float:
    """The most that the head holds at once, with all of `num_masked` positions masked.

    The gradient of its weight in fp32, masked hidden vectors and their gradients, and of a chunk the logits,
    beside them in bf16 their fp32 twin, unless the softmax is fused, or their product with hidden vectors.
    """
    width, vocab = job.width, job.shape.vocab / job.parallel.tensor
    chunk = min(job.head_chunk, num_masked)
    is_bf16 = width < FP32
    logits = chunk * vocab * (width + (FP32 if is_bf16 and not job.fuses_softmax else 0))
    hidden = width * num_masked * job.shape.hidden
    if not with_gradients:
        return logits + hidden
    if job.is_frozen:
        return logits + 2 * hidden
    weight = vocab * job.shape.hidden
    product = width * (chunk * vocab + weight) if is_bf16 else 0.0  # fp32 adds it to the sum as it is made
    return FP32 * weight + max(logits, product) + 2 * hidden


def buffer_bytes(job: Job) -> float:
    """Buckets of gradients on their way, and ZeRO-3's gathered parameters."""
    parallel = job.parallel
    stage, bucket = parallel.zero_stage, float(parallel.bucket_size or CUDA_BUCKET_SIZE)
    copies = 1 if parallel.overlap_comm is False else 2
    if stage == 0 or (stage == 1 and job.width == 2 and parallel.offload_optimizer == "none"):
        return 0.0  # gradients are reduced after backward, when activations are gone
    if stage < 3:
        return bucket * copies * job.width
    return bucket * job.width + min(job.num_parameters, LIVE_PARAMETERS) * job.width


def probe_bytes(job: Job) -> float:
    """A forward of P-POTS's probe, without gradients: all draws of one sample are its rows."""
    diffusion = job.config.diffusion
    if diffusion.t_sampler != "p_pots":
        return 0.0
    shape, width, tensor = job.shape, job.width, job.parallel.tensor
    tokens = diffusion.p_pots.num_masks * diffusion.rows_per_sample * job.length / job.parallel.sequence
    layer = width * (4 * shape.hidden + 3 * shape.inner / tensor)
    head = head_bytes(job, tokens, with_gradients=False) + tokens * width * shape.hidden
    gathered = buffer_bytes(job) if job.parallel.zero_stage == 3 else 0.0
    return max(tokens * layer, head) + gathered


def step_bytes(job: Job) -> float:
    """The fp32 gradient that the step is taken with, in one kernel; ZeRO-3 steps in groups."""
    if job.parallel.offload_optimizer != "none":
        return 0.0
    stage = job.parallel.zero_stage
    elements = job.num_trained / (job.shards if stage > 0 else 1)
    return FP32 * (min(elements, 1e9) if stage == 3 else elements)
