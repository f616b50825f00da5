"""Memory of a rank by use: what DeepSpeed allocates and what autograd stores.

The formulas for weights, gradients and optimizer state follow DeepSpeed's optimizers. Those for activations
follow the tensors that the layers of transformers save for backward. Tests compare both with real engines and
models.
"""

from dataclasses import dataclass

from mdmscale.analysis.planning.hardware import GIB, Gpu
from mdmscale.analysis.planning.workload import FP32, LIVE_PARAMETERS, Workload
from mdmscale.config.parallel import (
    CUDA_BUCKET_SIZE,
    SWAPPED_GROUP_BUFFERS,
    SWAPPED_GROUP_SIZE,
    SWAPPED_PARAMETERS,
)

# For the CUDA context, NCCL and cuBLAS; and the share that the allocator loses between blocks.
RESERVED, FRAGMENTATION = 2 * GIB, 0.05


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank.

    weights to buffers: on the device, in forward and backward. The head has finished before the first layer
    is recomputed, so activations include of that layer only what exceeds the head. probe and step: what the
    forwards of a P-POTS probe and the optimizer step need, in place of activations, head and buffers. host:
    offloaded to host memory. loading: in host memory while the model is loaded. disk: offloaded to files.
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
    def by_use(self) -> dict[str, float]:
        names = ("weights", "gradients", "optimizer", "activations", "head", "buffers")
        return {name: getattr(self, name) for name in names}

    @property
    def states(self) -> float:
        return self.weights + self.gradients + self.optimizer

    @property
    def phases(self) -> dict[str, float]:
        """The peak of each phase of a run."""
        forward_and_backward = self.activations + self.head + self.buffers
        phases = {"training": forward_and_backward, "optimizer step": self.step, "P-POTS probe": self.probe}
        return {name: self.states + extra for name, extra in phases.items()}

    @property
    def peak(self) -> float:
        return max(self.phases.values())

    def needed(self) -> float:
        """Device memory that the rank needs: the peak, the allocator's losses, and CUDA's own memory."""
        return self.peak * (1 + FRAGMENTATION) + RESERVED

    def fits(self, gpu: Gpu) -> bool:
        return self.needed() <= gpu.memory


def memory_of(workload: Workload) -> Memory:
    """The memory of one rank of `workload`."""
    parallel = workload.parallel
    stage, shards = parallel.zero_stage, workload.shards
    weights = workload.num_parameters * workload.width / (shards if stage == 3 else 1)
    gradients, optimizer = state_bytes(workload)
    host = disk = 0.0
    if parallel.offload_optimizer != "none":
        summed = workload.num_trained * FP32 / shards  # gradients
        host += summed + (optimizer if parallel.offload_optimizer == "cpu" else swap_buffer_bytes(workload))
        disk += optimizer + summed if parallel.swaps else 0.0
        optimizer, gradients = 0.0, workload.num_trained * workload.width if stage == 1 else 0.0
    if parallel.offload_parameters == "cpu":
        host, weights = host + weights, 0.0
    elif parallel.offload_parameters == "nvme":
        disk, weights = disk + weights, 0.0
    if parallel.hpz_partition_size > 1:
        weights += workload.num_parameters * workload.width / parallel.hpz_partition_size
    head = head_bytes(workload, workload.tokens, with_gradients=True)
    return Memory(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        activations=activation_bytes(workload) + max(0.0, recomputed_bytes(workload) - head),
        head=head,
        buffers=buffer_bytes(workload),
        probe=probe_bytes(workload),
        step=step_bytes(workload),
        host=host,
        loading=workload.shape.num_parameters * workload.width,
        disk=disk,
    )


def swap_buffer_bytes(workload: Workload) -> float:
    """Host buffers for transfers from and to the disk: groups of master weights, and parameters."""
    # elements of the largest parameter on one rank
    largest = max(workload.shape.embedding, workload.shape.hidden * workload.shape.inner) / workload.shards
    group = min(SWAPPED_GROUP_SIZE + largest, workload.num_trained / workload.shards)
    parameters = SWAPPED_PARAMETERS * (SWAPPED_GROUP_SIZE + largest) * workload.width
    return SWAPPED_GROUP_BUFFERS * FP32 * group + (
        parameters if workload.parallel.offload_parameters == "nvme" else 0.0
    )


def state_bytes(workload: Workload) -> tuple[float, float]:
    """Gradients and optimizer state of the trained parameters, before any offload.

    Optimizer state is an fp32 master weight and Adam's two moments, 12 bytes for an element, sharded from
    stage 1. ZeRO keeps a master weight even if weights are fp32; stage 0 does not. Gradients are replicated
    up to stage 1; with bf16, stage 1 holds both the bf16 gradients and their fp32 sums. From stage 2
    gradients are sharded fp32 sums. An average of the weights (train.ema_decay) adds 4 bytes, kept as the
    moments are.
    """
    stage, trained, shards = workload.parallel.zero_stage, workload.num_trained, workload.shards
    is_bf16 = workload.width == 2
    average = 0 if workload.config.train.ema_decay is None else FP32
    if stage == 0:
        return trained * workload.width, trained * ((12 if is_bf16 else 8) + average)
    state = trained * (12 + average) / shards
    if stage == 1:
        return trained * (workload.width + FP32 if is_bf16 else FP32), state
    return trained * FP32 / shards, state


def layer_bytes(workload: Workload) -> float:
    """What one decoder layer saves for backward, for each token.

    A norm saves its input in fp32 and its normalised value, and the projections save their inputs. Attention
    saves queries, keys, values, output and a log-sum-exp for each head. The MLP saves four vectors of
    intermediate_size. If attention gets a mask, key heads are repeated to the number of query heads. A mask
    over pairs of positions is saved as well.
    """
    shape, width, tensor, options = (
        workload.shape,
        workload.width,
        workload.parallel.tensor,
        workload.config.model,
    )
    query, key, heads = shape.query / tensor, shape.key / tensor, shape.heads / tensor
    pairs = attention_matrix_bytes(workload)
    is_padded = (
        workload.rows_may_be_padded and not workload.batch_layout.packs and workload.parallel.sequence == 1
    )
    is_masked = pairs > 0 or (is_padded and options.attention == "sdpa" and not workload.is_causal)
    is_repeated = is_masked or (
        workload.parallel.sequence > 1 and shape.key_heads % workload.parallel.sequence > 0
    )
    norms = 2 * ((FP32 + 2 * width) * shape.hidden + FP32)
    attention = width * (2 * query + 2 * (query if is_repeated else key)) + pairs
    if options.attention != "eager":
        attention += FP32 * heads
    if workload.parallel.sequence > 1 or (workload.batch_layout.packs and workload.rows_may_be_padded):
        attention += width * query  # a second copy of the output: as slices, or of all rows
    if shape.has_head_norms:
        attention += (FP32 + width) * (query + key) + FP32 * (heads + shape.key_heads / tensor)
    adapters = 0.0 if options.lora is None else width * options.lora.rank * len(shape.linears)
    return norms + attention + 4 * width * shape.inner / tensor + adapters


def attention_matrix_bytes(workload: Workload) -> float:
    """What attention saves over pairs of positions, for each layer and token."""
    options = workload.config.model
    if options.attention == "eager":
        scores = FP32 + (workload.width if workload.width < FP32 else 0)
        return workload.shape.heads / workload.parallel.tensor * workload.length * scores
    if options.attention_annealing_steps == 0:
        return 0.0  # a padding mask is over positions, not pairs
    return workload.width * workload.length * workload.parallel.sequence


def activation_bytes(workload: Workload) -> float:
    """What is stored when forward has finished: the tensors of all layers and of the last norm."""
    layer = (
        layer_bytes(workload)
        if workload.config.model.activation_checkpointing == "none"
        else stored_bytes(workload)
    )
    last_norm = (FP32 + workload.width) * workload.shape.hidden
    return workload.tokens * (workload.shape.layers * layer + last_norm)


def stored_bytes(workload: Workload) -> float:
    """With activation checkpointing: what one decoder layer stores for backward, for each token.

    That is its input. Selective checkpointing also stores the outputs of attention, with its log-sum-exp, and
    of all matrix products except the last.
    """
    shape, width, tensor, options = (
        workload.shape,
        workload.width,
        workload.parallel.tensor,
        workload.config.model,
    )
    if options.activation_checkpointing == "full":
        return width * shape.hidden
    products = (shape.query + 2 * shape.key + 2 * shape.inner) / tensor + 2 * shape.hidden
    attention = 0.0 if options.attention == "eager" else (width * shape.query + FP32 * shape.heads) / tensor
    adapters = 0.0
    if options.lora is not None:  # both matrix products of each adapter
        adapted = [shape.linears[name][1] for name in options.lora.target_modules or shape.linears]
        adapters = width * (sum(adapted) + options.lora.rank * len(adapted))
    return width * products + attention + adapters


def recomputed_bytes(workload: Workload) -> float:
    """With activation checkpointing: one layer recomputed in backward, and gradients of its widest part.

    What the layer stored in addition to its input is part of the recomputed layer.
    """
    if workload.config.model.activation_checkpointing == "none":
        return 0.0
    gradients = workload.width * (workload.shape.inner / workload.parallel.tensor + workload.shape.hidden)
    recomputed = layer_bytes(workload) + workload.width * workload.shape.hidden - stored_bytes(workload)
    return workload.tokens * (recomputed + gradients)


def head_bytes(workload: Workload, num_masked: float, with_gradients: bool) -> float:
    """The peak of the head for `num_masked` masked positions.

    It holds the fp32 gradient of its weight, the masked hidden vectors with their gradients, and the logits
    of one chunk. With bf16 it also holds an fp32 copy of the logits, unless the softmax is fused, or later
    their product with the hidden vectors, whichever is larger.
    """
    width, vocab = workload.width, workload.shape.vocab / workload.parallel.tensor
    chunk = min(workload.head_chunk, num_masked)
    is_bf16 = width < FP32
    logits = chunk * vocab * (width + (FP32 if is_bf16 and not workload.fuses_softmax else 0))
    hidden = width * num_masked * workload.shape.hidden
    if not with_gradients:
        return logits + hidden
    if workload.is_frozen:
        return logits + 2 * hidden
    weight = vocab * workload.shape.hidden
    product = width * (chunk * vocab + weight) if is_bf16 else 0.0  # fp32 products add to the sum directly
    return FP32 * weight + max(logits, product) + 2 * hidden


def buffer_bytes(workload: Workload) -> float:
    """Gradient buckets in reduction, and ZeRO-3's gathered parameters."""
    parallel = workload.parallel
    stage, bucket = parallel.zero_stage, float(parallel.bucket_size or CUDA_BUCKET_SIZE)
    copies = 1 if parallel.overlap_comm is False else 2
    if stage == 0 or (stage == 1 and workload.width == 2 and parallel.offload_optimizer == "none"):
        return 0.0  # gradients are reduced after backward, when activations have been freed
    if stage < 3:
        return bucket * copies * workload.width
    return bucket * workload.width + min(workload.num_parameters, LIVE_PARAMETERS) * workload.width


def probe_bytes(workload: Workload) -> float:
    """One forward of a P-POTS probe, without gradients."""
    if workload.config.diffusion.t_sampler != "p_pots":
        return 0.0
    shape, width, tensor = workload.shape, workload.width, workload.parallel.tensor
    tokens = workload.rows_per_probe * workload.length / workload.parallel.sequence
    layer = width * (4 * shape.hidden + 3 * shape.inner / tensor)
    head = head_bytes(workload, tokens, with_gradients=False) + tokens * width * shape.hidden
    gathered = buffer_bytes(workload) if workload.parallel.zero_stage == 3 else 0.0
    return max(tokens * layer, head) + gathered


def step_bytes(workload: Workload) -> float:
    """The fp32 gradient that the optimizer step uses. ZeRO-3 steps in groups of parameters."""
    if workload.parallel.offload_optimizer != "none":
        return 0.0
    stage = workload.parallel.zero_stage
    elements = workload.num_trained / (workload.shards if stage > 0 else 1)
    return FP32 * (min(elements, 1e9) if stage == 3 else elements)
