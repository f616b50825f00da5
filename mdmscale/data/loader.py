"""Makes this rank's micro-batches of each step from samples and noise."""

import numpy as np

from mdmscale.config.diffusion import DiffusionSection
from mdmscale.config.run import RunConfig
from mdmscale.data.batch import Batch
from mdmscale.data.collate import Collator
from mdmscale.data.source import SampleSource
from mdmscale.diffusion.density import DensityTable
from mdmscale.diffusion.noise import Noise, NoisedSample, training_noise
from mdmscale.diffusion.t_samplers import TSampler
from mdmscale.models.annealing import visible_positions
from mdmscale.parallel.batch_layout import BatchLayout


class TrainLoader:
    """Micro-batches as a pure function of step and t-sampler, so a checkpoint needs no data position."""

    def __init__(
        self,
        source: SampleSource,
        config: RunConfig,
        layout: BatchLayout,
        dp_rank: int,
        noise: Noise,
        collate: Collator,
    ):
        self.source = source
        self.layout = layout
        self.dp_rank = dp_rank
        self.seed = config.run.seed
        self.noise = noise
        self.collate = collate
        self.annealing_steps = config.model.attention_annealing_steps
        self.longest = config.data.sequence_length

    def micro_batches(self, step: int, t_sampler: TSampler) -> list[Batch]:
        """The batches of this rank's forwards in `step`, in order, on the CPU.

        If the layout splits rows, each row of the same samples is a batch of its own; these are consecutive.
        """
        visible = None
        if step < self.annealing_steps:
            visible = visible_positions(self.seed, step, self.annealing_steps, self.longest)
        batches: list[Batch] = []
        first_draw = 0
        for indices in self.layout.sample_indices(step, self.dp_rank):
            samples = [self.noised(index, t_sampler) for index in indices]
            batches += [self.collate(rows, visible, first_draw) for rows in self.rows_of(samples)]
            first_draw += sum(len(sample.t) for sample in samples)
        return batches

    def rows_of(self, samples: list[NoisedSample]) -> list[list[NoisedSample]]:
        """The samples of each forward: once with all their rows, or once for each row."""
        if not self.layout.splits_rows:
            return [samples]
        return [[sample.row(number) for sample in samples] for number in range(self.layout.rows_per_sample)]

    def noised(self, index: int, t_sampler: TSampler) -> NoisedSample:
        """Sample `index` of the run with its masks."""
        return training_noise(self.source.train_sample(index), index, t_sampler, self.noise)


def make_t_sampler(config: RunConfig) -> TSampler:
    """The t-sampler of a run."""
    return t_sampler_of(config.diffusion, config.run.seed, config.train.global_batch_size)


def t_sampler_of(diffusion: DiffusionSection, seed: int, batch_size: int) -> TSampler:
    """The t-sampler that the section describes, for global batches of `batch_size` samples.

    P-POTS starts from the uniform density and replaces it after a measurement.
    """
    return TSampler(
        seed,
        batch_size,
        strata=diffusion.strata or (batch_size if diffusion.t_sampler == "stratified" else None),
        low_discrepancy=diffusion.t_sampler == "low_discrepancy",
        density=uniform_density(diffusion),
        loss_weight=diffusion.initial_loss_weight,
    )


def uniform_density(diffusion: DiffusionSection) -> DensityTable:
    """p(t) uniform where the objective weighs anything.

    Exact counts outside a window still have a small weight, because a mask rate within it may give them. They
    are drawn rarely (p_pots.defensive), but drawn.
    """
    low, high = diffusion.t_range
    if diffusion.drawn_range == (low, high):
        return DensityTable.uniform(low, high)
    edges = np.unique([0.0, low, high, 1.0])
    inside = (edges[:-1] >= low) & (edges[1:] <= high)
    return DensityTable.from_weights(edges, inside.astype(float), diffusion.p_pots.defensive)
