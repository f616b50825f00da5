"""Bytes that a GPU sends in a step, by what for and over which link, and the seconds they take.

Ranks are ordered data x sequence x tensor, tensor ranks adjacent. A ring over n ranks sends (n - 1) / n of a
message from each; where it spans nodes one of a node's hops leaves it, and NCCL runs as many rings as there
are ports, so all of them carry it.
"""

from dataclasses import dataclass

from mdmscale.analysis.planning.hardware import Cluster
from mdmscale.analysis.planning.job import Job
from mdmscale.config.parallel import CUDA_BUCKET_SIZE

LINK_SUSTAINED = 0.8  # share of a link's rate that large collectives reach
LATENCY, LATENCY_A_NODE = 20e-6, 3e-6  # of a collective


@dataclass(frozen=True)
class Traffic:
    """One kind of message.

    inside, between: bytes that a GPU sends in a step to its node and, on average, out of it. seconds: what
    they take by themselves. hides_behind: the part of the step that goes on meanwhile, if any.
    """

    name: str
    inside: float
    between: float
    seconds: float
    hides_behind: str | None = None


@dataclass(frozen=True)
class Group:
    """`size` ranks, `stride` apart, that talk to each other."""

    size: int
    stride: int
    cluster: Cluster

    @property
    def in_a_node(self) -> int:
        return min(self.size, max(1, self.cluster.gpus_per_node // self.stride))

    @property
    def num_nodes(self) -> int:
        return -(-self.size // self.in_a_node)

    def ring(
        self, name: str, message: float, count: float, rounds: int = 1, hides_behind: str | None = None
    ) -> Traffic:
        """`count` collectives of `message` bytes in all; `rounds` is 2 for an all-reduce."""
        sent = message * rounds * (self.size - 1) / self.size
        leaving = 0.0 if self.num_nodes == 1 else sent / self.in_a_node
        bandwidth = self.cluster.gpu.link
        if self.num_nodes > 1:
            network = self.cluster.network_share * self.in_a_node
            bandwidth = network if self.in_a_node == 1 else min(bandwidth, network)
        latency = count * rounds * (LATENCY + LATENCY_A_NODE * self.num_nodes) if self.size > 1 else 0.0
        seconds = sent / (bandwidth * LINK_SUSTAINED) + latency
        return Traffic(name, sent - leaving, leaving, seconds, hides_behind)

    def all_to_all(self, name: str, message: float, count: float) -> Traffic:
        """`count` exchanges of `message` bytes in all, of which every rank keeps its own part."""
        sent = message * (self.size - 1) / self.size
        leaving = sent * (self.size - self.in_a_node) / max(1, self.size - 1)
        seconds = (sent - leaving) / self.cluster.gpu.link + leaving / self.cluster.network_share
        return Traffic(name, sent - leaving, leaving, seconds / LINK_SUSTAINED + count * LATENCY)


def traffic_of(job: Job, cluster: Cluster) -> list[Traffic]:
    """All messages of a step."""
    found = [*zero_traffic(job, cluster), *tensor_traffic(job, cluster), *sequence_traffic(job, cluster)]
    return [each for each in found if each.inside + each.between > 0]


def zero_traffic(job: Job, cluster: Cluster) -> list[Traffic]:
    """Gradients and weights, as DeepSpeed moves them at each stage.

    Stage 0 all-reduces gradients once a step. Stages 1 and 2 all-reduce them too, in buckets that hold
    several ranks' parts, stage 1 once a step and stage 2 each forward, and gather the new weights. Stage 3
    gathers the weights in forward and in backward and reduce-scatters the gradients, all in each forward.
    """
    parallel, stage = job.parallel, job.parallel.zero_stage
    group = Group(job.shards, parallel.tensor, cluster)
    gradients, weights = job.num_trained * job.width, job.num_trained * job.width
    buckets = -(-job.num_trained // (parallel.bucket_size or CUDA_BUCKET_SIZE))
    is_hidden = parallel.overlap_comm is not False
    behind = "backward" if is_hidden else None
    if stage == 0:
        return [group.ring("gradients, all-reduce", gradients, buckets, rounds=2)]
    if stage < 3:
        turns = job.forwards if stage == 2 else 1
        # DeepSpeed's optimizer for bf16 under stage 1 reduces when backward is done.
        behind = None if stage == 1 and job.width == 2 else behind
        return [
            group.ring("gradients, all-reduce", gradients * turns, buckets * turns, 2, behind),
            group.ring("weights, all-gather", weights, buckets),
        ]
    forwards, layers = job.forwards, job.shape.layers
    near = Group(min(parallel.hpz_partition_size, job.shards), parallel.tensor, cluster)
    all_weights = job.num_parameters * job.width * forwards
    share = 0.5 if parallel.quantized_weights else 1.0
    reduced = gradients * forwards * (0.25 if parallel.quantized_gradients else 1.0)
    again = near if parallel.hpz_partition_size > 1 else group
    in_forward, in_backward = ("forward", "backward") if is_hidden else (None, None)
    count = layers * forwards
    return [
        group.ring("weights, gathered forward", all_weights * share, count, 1, in_forward),
        again.ring("weights, gathered backward", all_weights * share, count, 1, in_backward),
        group.ring("gradients, reduce-scatter", reduced, count, 1, in_backward),
    ]


def tensor_traffic(job: Job, cluster: Cluster) -> list[Traffic]:
    """All-reduces of activations: two a layer in each pass, one for the embedding and one for the head."""
    group = Group(job.parallel.tensor, 1, cluster)
    passes = 2 + (job.config.model.activation_checkpointing != "none")
    count = job.forwards * (2 * job.shape.layers * passes + 2)
    message = job.tokens * job.shape.hidden * job.width
    return [group.ring("tensor ranks, all-reduce", message * count, count, rounds=2)]


def sequence_traffic(job: Job, cluster: Cluster) -> list[Traffic]:
    """Queries, keys, values and outputs of each layer and pass, exchanged among a sequence's ranks."""
    shape, ranks, tensor = job.shape, job.parallel.sequence, job.parallel.tensor
    group = Group(ranks, tensor, cluster)
    key = shape.query if shape.key_heads % ranks else shape.key
    passes = 2 + (job.config.model.activation_checkpointing != "none")
    message = job.tokens * (2 * shape.query + 2 * key) / tensor * job.width
    count = job.forwards * shape.layers * passes
    return [group.all_to_all("sequence ranks, all-to-all", message * count, 4 * count)]
