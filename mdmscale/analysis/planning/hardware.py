"""GPUs and networks: specifications, and the share of peak that published training runs sustain.

Sources: NVIDIA's data sheets (A100, H100, H200, L40S) and architecture whitepapers (Ada, Blackwell). Peaks
are dense bf16 with fp32 accumulation, and fp32. Link bandwidths are for one direction. Memory is what
nvidia-smi reports. torchtitan's figures are in docs/performance.md of its repository.
"""

from dataclasses import dataclass

from mdmscale.models.flops import PEAKS
from mdmscale.system.errors import UserError

GB, TFLOPS, MIB, GIB = 1e9, 1e12, 2**20, 2**30


@dataclass(frozen=True)
class Gpu:
    """One device.

    sustained: share of the peak that matrix products and attention reach in training. anchor: the source of
    that number.
    """

    name: str
    memory: int  # bytes
    peak: float  # dense bf16 operations a second
    peak_fp32: float
    bandwidth: float  # bytes a second of its memory
    link: float  # bytes a second to the other GPUs of its node
    host_link: float  # bytes a second to the host's memory
    sustained: float
    anchor: str


@dataclass(frozen=True)
class Network:
    """The network between nodes: ports of `port` bytes a second, one for each GPU or one for each node."""

    name: str
    port: float
    is_per_gpu: bool
    description: str


ON_H100 = "torchtitan: Llama-3.1-8B, 8 H100 at 500 W, FSDP, 5,762 tokens/s a GPU (6,667 compiled)"
ON_A100 = "torchtitan: Llama-3-70B, 64 A100, FSDP, full recomputation, 331 tokens/s a GPU"
GUESS = "a guess, from similar GPUs"
_GPUS = (
    ("a100-40g", 40960, "A100", 19.5, 1555, 300, 25, 0.65, ON_A100),
    ("a100-80g", 81920, "A100", 19.5, 2039, 300, 25, 0.65, ON_A100),
    ("h100-80g", 81559, "H100", 67, 3350, 450, 50, 0.43, ON_H100),
    ("h800-80g", 81559, "H800", 67, 3350, 200, 50, 0.43, ON_H100),
    ("h200-141g", 143771, "H200", 67, 4800, 450, 50, 0.43, ON_H100),
    ("b200", 183359, "B200", 80, 7700, 900, 50, 0.40, GUESS),
    ("l40s", 46068, "L40S", 91.6, 864, 25, 25, 0.45, GUESS),
    ("rtx4090", 24564, "RTX 4090", 82.6, 1008, 20, 25, 0.60, GUESS),
)
GPUS = {
    name: Gpu(name, mib * MIB, PEAKS[chip], fp32 * TFLOPS, memory * GB, link * GB, host * GB, share, anchor)
    for name, mib, chip, fp32, memory, link, host, share, anchor in _GPUS
}
NETWORKS = {
    network.name: network
    for network in (
        Network("ndr400", 50 * GB, True, "InfiniBand NDR or RoCE, 400 Gb/s a GPU"),
        Network("hdr200", 25 * GB, True, "InfiniBand HDR, 200 Gb/s a GPU"),
        Network("ethernet-400g", 50 * GB, False, "one 400 Gb/s port a node"),
        Network("ethernet-100g", 12.5 * GB, False, "one 100 Gb/s port a node"),
        Network("ethernet-25g", 3.125 * GB, False, "one 25 Gb/s port a node"),
    )
}
GPUS_PER_NODE = 8


@dataclass(frozen=True)
class Cluster:
    """The GPUs on which a run is planned."""

    gpu: Gpu
    network: Network
    num_gpus: int
    num_nodes: int

    @property
    def gpus_per_node(self) -> int:
        return self.num_gpus // self.num_nodes

    @property
    def network_share(self) -> float:
        """Bytes a second that a GPU can send out of its node while all GPUs of the node send."""
        return self.network.port / (1 if self.network.is_per_gpu else self.gpus_per_node)


def make_cluster(gpu: str, network: str, num_gpus: int, num_nodes: int | None) -> Cluster:
    """The cluster that the options describe. Without `num_nodes` a node has 8 GPUs.

    Raises:
        UserError: with all problems found.
    """
    problems = []
    if gpu not in GPUS:
        problems.append(f"--gpu {gpu}: not known; choose from {', '.join(GPUS)}")
    if network not in NETWORKS:
        problems.append(f"--network {network}: not known; choose from {', '.join(NETWORKS)}")
    if num_gpus < 1:
        problems.append(f"--gpus {num_gpus}: must be at least 1")
    elif num_nodes is not None and (num_nodes < 1 or num_gpus % num_nodes):
        problems.append(
            f"--nodes {num_nodes}: does not divide --gpus {num_gpus}; every node has the same number of GPUs"
        )
    elif num_nodes is None and num_gpus > GPUS_PER_NODE and num_gpus % GPUS_PER_NODE:
        problems.append(
            f"--gpus {num_gpus}: no multiple of {GPUS_PER_NODE}, a node's; give --nodes, or "
            f"{num_gpus // GPUS_PER_NODE * GPUS_PER_NODE} GPUs"
        )
    if problems:
        raise UserError(*problems)
    return Cluster(GPUS[gpu], NETWORKS[network], num_gpus, num_nodes or -(-num_gpus // GPUS_PER_NODE))
