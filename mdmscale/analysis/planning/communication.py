"""Bytes that a GPU sends in a step, by purpose and link, and the seconds they take.

Ranks are ordered data x sequence x tensor, so tensor ranks are adjacent. In a ring of n ranks each rank sends
(n - 1) / n of a message. If the ring spans nodes, one hop of each node leaves it. NCCL runs one ring for each
network port, so all ports share that traffic.
"""

from dataclasses import dataclass

from mdmscale.analysis.planning.hardware import Cluster
from mdmscale.analysis.planning.workload import Workload
from mdmscale.config.parallel import CUDA_BUCKET_SIZE

LINK_SUSTAINED = 0.8  # share of a link's rate that large collectives reach
LATENCY, LATENCY_A_NODE = 20e-6, 3e-6  # seconds of a collective


@dataclass(frozen=True)
class Traffic:
    """One kind of message.

    inside, between: bytes that a GPU sends in a step within its node and, on average, out of it. seconds:
    their duration without overlap. hides_behind: the part of the step that overlaps with them, if any.
    """

    name: str
    inside: float
    between: float
    seconds: float
    hides_behind: str | None = None


@dataclass(frozen=True)
class Group:
    """`size` ranks that communicate. Neighbours in the group differ by `stride`."""

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
        """`count` collectives that move `message` bytes together; `rounds` is 2 for an all-reduce."""
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
        """`count` exchanges of `message` bytes together. Each rank keeps its own part."""
        sent = message * (self.size - 1) / self.size
        leaving = sent * (self.size - self.in_a_node) / max(1, self.size - 1)
        seconds = (sent - leaving) / self.cluster.gpu.link + leaving / self.cluster.network_share
        return Traffic(name, sent - leaving, leaving, seconds / LINK_SUSTAINED + count * LATENCY)


def traffic_of(workload: Workload, cluster: Cluster) -> list[Traffic]:
    """All messages of a step."""
    found = [
        *zero_traffic(workload, cluster),
        *tensor_traffic(workload, cluster),
        *sequence_traffic(workload, cluster),
    ]
    return [each for each in found if each.inside + each.between > 0]


def zero_traffic(workload: Workload, cluster: Cluster) -> list[Traffic]:
    """Gradients and weights, as DeepSpeed moves them at each stage.

    Stage 0 all-reduces gradients once in a step. Stages 1 and 2 also all-reduce them, because a bucket holds
    parts of several ranks, and then gather the new weights. Stage 1 reduces once in a step, stage 2 once for
    each forward. Stage 3 gathers weights in forward and again in backward, and reduce-scatters gradients, for
    each forward.
    """
    parallel, stage = workload.parallel, workload.parallel.zero_stage
    group = Group(workload.shards, parallel.tensor, cluster)
    gradients, weights = workload.num_trained * workload.width, workload.num_trained * workload.width
    buckets = -(-workload.num_trained // (parallel.bucket_size or CUDA_BUCKET_SIZE))
    is_hidden = parallel.overlap_comm is not False
    behind = "backward" if is_hidden else None
    if stage == 0:
        return [group.ring("gradients, all-reduce", gradients, buckets, rounds=2)]
    if stage < 3:
        turns = workload.forwards if stage == 2 else 1
        # With bf16 and stage 1 DeepSpeed reduces after backward.
        behind = None if stage == 1 and workload.width == 2 else behind
        return [
            group.ring("gradients, all-reduce", gradients * turns, buckets * turns, 2, behind),
            group.ring("weights, all-gather", weights, buckets),
        ]
    forwards, layers = workload.forwards, workload.shape.layers
    near = Group(min(parallel.hpz_partition_size, workload.shards), parallel.tensor, cluster)
    all_weights = workload.num_parameters * workload.width * forwards
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


def tensor_traffic(workload: Workload, cluster: Cluster) -> list[Traffic]:
    """All-reduces of activations: two in a layer and pass, one for the embedding and one for the head."""
    group = Group(workload.parallel.tensor, 1, cluster)
    passes = 2 + (workload.config.model.activation_checkpointing != "none")
    count = workload.forwards * (2 * workload.shape.layers * passes + 2)
    message = workload.tokens * workload.shape.hidden * workload.width
    return [group.ring("tensor ranks, all-reduce", message * count, count, rounds=2)]


def sequence_traffic(workload: Workload, cluster: Cluster) -> list[Traffic]:
    """Queries, keys, values and outputs of each layer and pass, exchanged between the ranks of a sequence."""
    shape, ranks, tensor = workload.shape, workload.parallel.sequence, workload.parallel.tensor
    group = Group(ranks, tensor, cluster)
    key = shape.query if shape.key_heads % ranks else shape.key
    passes = 2 + (workload.config.model.activation_checkpointing != "none")
    message = workload.tokens * (2 * shape.query + 2 * key) / tensor * workload.width
    count = workload.forwards * shape.layers * passes
    return [group.all_to_all("sequence ranks, all-to-all", message * count, 4 * count)]
