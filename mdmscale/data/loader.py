"""Samples and their noise for each step, made into this rank's micro-batches."""

from mdmscale.config import RunConfig
from mdmscale.data.batch import Batch
from mdmscale.data.collate import NoisedSample, collate, noise_sample
from mdmscale.data.source import SampleSource
from mdmscale.diffusion.t_samplers import TSampler
from mdmscale.diffusion.uniforms import mask_uniforms
from mdmscale.layout import BatchLayout


class TrainLoader:
    """Micro-batches as a pure function of step and t-sampler: there is no position to save."""

    def __init__(
        self, source: SampleSource, config: RunConfig, layout: BatchLayout, rank: int, mask_token_id: int
    ):
        self.source = source
        self.layout = layout
        self.rank = rank
        self.seed = config.run.seed
        self.diffusion = config.diffusion
        self.mask_token_id = mask_token_id

    def micro_batches(self, step: int, t_sampler: TSampler) -> list[Batch]:
        """This rank's micro-batches of `step`, on the CPU."""
        return [
            collate([self.noised(index, t_sampler) for index in indices], self.mask_token_id)
            for indices in self.layout.sample_indices(step, self.rank)
        ]

    def noised(self, index: int, t_sampler: TSampler) -> NoisedSample:
        """Sample `index` of the run with its masks."""
        t, importance_weight = t_sampler.draw(index)
        sample = self.source.train_sample(index)
        uniforms = mask_uniforms(self.seed, index, len(sample.token_ids))
        return noise_sample(sample, t, importance_weight, uniforms, self.diffusion)
