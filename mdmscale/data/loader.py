"""Samples and their noise for each step, made into this rank's micro-batches."""

import numpy as np

from mdmscale.config.run import RunConfig
from mdmscale.data.batch import Batch
from mdmscale.data.collate import Collator
from mdmscale.data.source import SampleSource
from mdmscale.diffusion.noise import Noise, NoisedSample, noise_sample
from mdmscale.diffusion.t_samplers import TSampler
from mdmscale.diffusion.uniforms import mask_uniforms
from mdmscale.models.annealing import open_pairs
from mdmscale.parallel.batch_layout import BatchLayout


class TrainLoader:
    """Micro-batches as a pure function of step and t-sampler: there is no position to save."""

    def __init__(
        self,
        source: SampleSource,
        config: RunConfig,
        layout: BatchLayout,
        rank: int,
        noise: Noise,
        collate: Collator,
    ):
        self.source = source
        self.layout = layout
        self.rank = rank  # among the data-parallel ones
        self.seed = config.run.seed
        self.noise = noise
        self.collate = collate
        self.annealing_steps = config.model.attention_annealing_steps
        self.longest = config.data.sequence_length

    def micro_batches(self, step: int, t_sampler: TSampler) -> list[list[Batch]]:
        """This rank's micro-batches of `step`, on the CPU, each as the forwards that it takes.

        One forward with all rows; where the rows of a pair take turns, two with one row a sample.
        """
        pairs = None
        if step < self.annealing_steps:
            pairs = open_pairs(self.seed, step, self.annealing_steps, self.longest)
        return [
            self.forwards_of([self.noised(index, t_sampler) for index in indices], pairs)
            for indices in self.layout.sample_indices(step, self.rank)
        ]

    def forwards_of(self, samples: list[NoisedSample], pairs: np.ndarray | None = None) -> list[Batch]:
        """The forwards of one micro-batch, in which attention sees `pairs` of positions (None: all)."""
        if self.layout.forwards == 1:
            return [self.collate(samples, pairs)]
        return [
            self.collate([sample.copy(number) for sample in samples], pairs)
            for number in range(self.layout.forwards)
        ]

    def noised(self, index: int, t_sampler: TSampler) -> NoisedSample:
        """Sample `index` of the run with its masks."""
        t, importance_weight = t_sampler.draw(index)
        sample = self.noise.widened(self.source.train_sample(index), self.seed, index)
        uniforms = mask_uniforms(self.seed, index, len(sample.token_ids))
        return noise_sample(sample, t, importance_weight, uniforms, self.noise)
