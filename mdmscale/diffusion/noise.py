"""Turns a clean sample into a noised sample, according to the options of a run."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from mdmscale.diffusion.corruption import Corruption, Draw
from mdmscale.diffusion.levels import Levels
from mdmscale.diffusion.maskings import CorruptionOptions, corruption_of
from mdmscale.diffusion.objective import Normalization, token_share
from mdmscale.diffusion.sample import Sample
from mdmscale.diffusion.t_samplers import TSampler
from mdmscale.diffusion.uniforms import Stream, mask_uniforms


class NoiseOptions(CorruptionOptions, Protocol):
    """The options of the config's `diffusion` section that noise uses."""

    @property
    def weighs_by_count(self) -> bool: ...
    @property
    def eps(self) -> float: ...
    @property
    def normalization(self) -> Normalization: ...
    @property
    def isad(self) -> Any: ...  # uses delta
    @property
    def syrm(self) -> Any: ...  # uses extra


@dataclass(frozen=True, eq=False)
class Noise:
    """How samples are masked: the config's options, and the tokens that ISAD and SyRM look for.

    delimiters, structural: bool [vocab], True at ISAD's and SyRM's tokens; None if the method is off.
    """

    options: NoiseOptions
    delimiters: np.ndarray | None = None
    structural: np.ndarray | None = None

    @cached_property
    def corruption(self) -> Corruption:
        return corruption_of(self.options)

    def uniforms(self, seed: int, index: int, length: int) -> np.ndarray:
        """The uniforms of training sample `index`, float64 [num_uniforms, length]."""
        num = self.corruption.num_uniforms
        return mask_uniforms(seed, index, num * length).reshape(num, length)

    def widened(self, sample: Sample, seed: int, index: int) -> Sample:
        """Training sample `index` with SyRM's prompt tokens also eligible. Unchanged if SyRM is off."""
        if self.options.syrm is None or self.structural is None:
            return sample
        uniforms = mask_uniforms(seed, index, len(sample.token_ids), Stream.SYRM)
        is_structural = self.structural[sample.token_ids]
        eligible = syrm_eligible(sample.eligible, is_structural, self.options.syrm.extra, uniforms)
        return Sample(sample.token_ids, eligible)

    def extra_rates(self, sample: Sample) -> np.ndarray:
        """The amount that ISAD adds to the mask rate of each position, float64 [length]."""
        if self.options.isad is None or self.delimiters is None:
            return np.zeros(len(sample.token_ids))
        return np.where(self.delimiters[sample.token_ids], self.options.isad.delta, 0.0)


@dataclass(frozen=True, eq=False)
class NoisedSample:
    """A sample with its masks.

    token_ids: int64 [columns], clean. masks: bool [rows, columns]. weights: float64 [rows, columns], the
    weight of a masked position's cross-entropy in the sample's loss, 0 elsewhere. num_eligible: number of
    tokens that may be masked. t: float64 [draws], the t of the parts that the loss is a sum of.
    importance_weights: float64 [draws], 1 / p(t) over the number of draws: the factor of a draw's plain loss
    in the sample's loss. t_of, position_ids, attention, is_causal: see corruption.NoisedRows.
    """

    token_ids: np.ndarray
    masks: np.ndarray
    weights: np.ndarray
    num_eligible: int
    t: np.ndarray
    importance_weights: np.ndarray
    t_of: np.ndarray | int = 0
    position_ids: np.ndarray | None = None
    attention: np.ndarray | None = None
    is_causal: bool = False

    @property
    def num_tokens(self) -> int:
        """Clean tokens of the sample, however often a row shows them."""
        return len(self.token_ids) if self.position_ids is None else int(self.position_ids.max()) + 1

    def row(self, number: int) -> "NoisedSample":
        """Row `number` as a sample of its own. The losses of all rows add up to the sample's loss."""
        at = slice(number, number + 1)
        t_of = self.t_of[at] if isinstance(self.t_of, np.ndarray) and self.t_of.ndim == 2 else self.t_of
        return replace(self, masks=self.masks[at], weights=self.weights[at], t_of=t_of)


def training_noise(sample: Sample, index: int, t_sampler: TSampler, noise: Noise) -> NoisedSample:
    """Sample `index` of the run of the t-sampler's seed, with its masks."""
    seed = t_sampler.seed
    sample = noise.widened(sample, seed, index)
    length = len(sample.token_ids)
    levels = t_sampler.draw(index, noise.corruption.num_t(length))
    return noise_sample(sample, levels, noise.uniforms(seed, index, length), noise)


def noise_sample(sample: Sample, levels: Levels, uniforms: np.ndarray, noise: Noise) -> NoisedSample:
    """Mask a sample at `levels` with uniforms [num_uniforms, length] or [length], according to `noise`."""
    return corrupted(sample, levels, uniforms, noise, noise.corruption)


def corrupted(
    sample: Sample, levels: Levels, uniforms: np.ndarray, noise: Noise, corruption: Corruption
) -> NoisedSample:
    """As `noise_sample`, with a corruption that may be another than the run's."""
    options = noise.options
    eligible = sample.eligible
    if options.objective == "ar":  # nothing is before the first token from which it could be predicted
        eligible = eligible & (np.arange(len(eligible)) > 0)
    draw = Draw(
        levels=levels,
        uniforms=np.atleast_2d(uniforms),
        eligible=eligible,
        share=token_share(int(eligible.sum()), options.normalization),
        eps=options.eps,
        extra_rates=noise.extra_rates(sample),
        by_count=options.weighs_by_count,
    )
    rows = corruption.corrupt(draw)
    at = rows.position_ids
    used = rows.levels or levels
    return NoisedSample(
        token_ids=sample.token_ids if at is None else sample.token_ids[at],
        masks=rows.masks,
        weights=rows.weights,
        num_eligible=draw.num_eligible,
        t=used.t,
        importance_weights=used.importance_weights / len(used.t),
        t_of=rows.t_of,
        position_ids=at,
        attention=rows.attention,
        is_causal=rows.is_causal,
    )


def syrm_eligible(
    eligible: np.ndarray, is_structural: np.ndarray, extra: float, uniforms: np.ndarray
) -> np.ndarray:
    """SyRM's eligible positions. It adds the prompt's structural tokens and a share of its other tokens.

    Args:
        eligible, is_structural: bool [length]. The positions that are not eligible are the prompt.
        uniforms: float64 [length] in [0, 1). They choose the share `extra` of the prompt's other tokens.

    Returns:
        bool [length].
    """
    return eligible | is_structural | (uniforms < extra)
