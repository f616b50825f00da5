"""The plan of a config on a cluster: memory, step time, communication, and the cost of the run."""

from dataclasses import dataclass

from mdmscale.analysis.planning.communication import Traffic, traffic_of
from mdmscale.analysis.planning.compute import Compute, compute_of, forward_seconds, model_flops
from mdmscale.analysis.planning.hardware import Cluster
from mdmscale.analysis.planning.memory import Memory, memory_of
from mdmscale.analysis.planning.workload import Workload, make_workload
from mdmscale.config.run import RunConfig
from mdmscale.diffusion.p_pots import probe_edges
from mdmscale.models.shape import ModelShape

# The share of a pass that can overlap with communication, and the share of communication that never overlaps.
HIDING, NEVER_HIDDEN = 0.7, 0.1
SECONDS_A_DAY, SECONDS_AN_HOUR = 86_400, 3_600


@dataclass(frozen=True)
class Plan:
    """Memory in bytes and time in seconds of a workload on a cluster."""

    workload: Workload
    cluster: Cluster
    memory: Memory
    compute: Compute
    traffic: list[Traffic]
    num_steps: int

    @property
    def fits(self) -> bool:
        return self.memory.fits(self.cluster.gpu)

    @property
    def exposed(self) -> float:
        """Seconds of a step in which a GPU only waits for communication."""
        waiting = 0.0
        for part in (None, "forward", "backward"):
            seconds = sum(each.seconds for each in self.traffic if each.hides_behind == part)
            hidden = HIDING * getattr(self.compute, part) if part is not None else 0.0
            waiting += max(seconds - hidden, NEVER_HIDDEN * seconds)
        return waiting

    @property
    def step_seconds(self) -> float:
        return self.compute.seconds + self.exposed

    @property
    def tokens_per_second(self) -> float:
        return self.workload.tokens_per_step / self.step_seconds

    @property
    def mfu(self) -> float:
        """Share of the GPUs' bf16 peak that the model's own operations use, recomputation not counted."""
        return model_flops(self.workload) / (
            self.step_seconds * self.cluster.num_gpus * self.cluster.gpu.peak
        )

    @property
    def num_probes(self) -> int:
        diffusion = self.workload.config.diffusion
        if diffusion.t_sampler != "p_pots":
            return 0
        return sum(step < self.num_steps for step in diffusion.p_pots.probe_steps)

    @property
    def probe_forwards(self) -> int:
        """Forwards of one probe over all ranks. A forward holds a sample at one t under all its masks."""
        options = self.workload.config.diffusion.p_pots
        edges = probe_edges(options, self.workload.config.diffusion.drawn_range)
        return options.num_x0 * (len(edges) - 1)

    @property
    def probe_seconds(self) -> float:
        """One probe, whose forwards are distributed over the data ranks."""
        workload = self.workload
        tokens = workload.rows_per_probe * workload.length / workload.parallel.sequence
        turns = -(-self.probe_forwards // workload.batch_layout.dp_size)
        return turns * forward_seconds(workload, self.cluster.gpu, tokens)

    @property
    def run_seconds(self) -> float:
        return self.num_steps * self.step_seconds + self.num_probes * self.probe_seconds

    @property
    def probe_share(self) -> float:
        return self.num_probes * self.probe_seconds / self.run_seconds

    @property
    def days(self) -> float:
        return self.run_seconds / SECONDS_A_DAY

    @property
    def gpu_hours(self) -> float:
        return self.cluster.num_gpus * self.run_seconds / SECONDS_AN_HOUR


def make_plan(
    config: RunConfig, shape: ModelShape, cluster: Cluster, token_budget: float | None = None
) -> Plan:
    """Plan `config` on `cluster`, for train.steps or for the steps that `token_budget` tokens take.

    Raises:
        UserError: where ranks, model or batch do not divide, with a number that does.
    """
    workload = make_workload(config, shape, cluster.num_gpus)
    num_steps = config.train.steps
    if token_budget is not None:
        num_steps = max(1, round(token_budget / workload.tokens_per_step))
    return Plan(
        workload=workload,
        cluster=cluster,
        memory=memory_of(workload),
        compute=compute_of(workload, cluster.gpu, cluster.gpus_per_node),
        traffic=traffic_of(workload, cluster),
        num_steps=num_steps,
    )
