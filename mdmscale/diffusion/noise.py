"""From a clean sample to a noised one, as the options of a run say."""

from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from mdmscale.diffusion.corruption import CORRUPTIONS, Corruption, Draw
from mdmscale.diffusion.objective import Normalization, token_share
from mdmscale.diffusion.sample import Sample
from mdmscale.diffusion.uniforms import Stream, mask_uniforms


class NoiseOptions(Protocol):
    """What noise needs of the config's `diffusion` section."""

    @property
    def masking(self) -> str: ...
    @property
    def eps(self) -> float: ...
    @property
    def normalization(self) -> Normalization: ...
    @property
    def isad(self) -> Any: ...  # delta
    @property
    def syrm(self) -> Any: ...  # extra


@dataclass(frozen=True, eq=False)
class Noise:
    """How samples are masked: the config's options, and the tokens that ISAD and SyRM look for.

    delimiters, structural: bool [vocab], True at ISAD's and SyRM's tokens; None where the method is off.
    """

    options: NoiseOptions
    delimiters: np.ndarray | None = None
    structural: np.ndarray | None = None

    @property
    def corruption(self) -> Corruption:
        return CORRUPTIONS[self.options.masking]

    def widened(self, sample: Sample, seed: int, index: int) -> Sample:
        """Training sample `index` with SyRM's prompt tokens eligible; unchanged where SyRM is off."""
        if self.options.syrm is None or self.structural is None:
            return sample
        uniforms = mask_uniforms(seed, index, len(sample.token_ids), Stream.SYRM)
        is_structural = self.structural[sample.token_ids]
        eligible = syrm_eligible(sample.eligible, is_structural, self.options.syrm.extra, uniforms)
        return Sample(sample.token_ids, eligible)

    def extra_rates(self, sample: Sample) -> np.ndarray:
        """What ISAD adds to the mask rate of each position, float64 [length]."""
        if self.options.isad is None or self.delimiters is None:
            return np.zeros(len(sample.token_ids))
        return np.where(self.delimiters[sample.token_ids], self.options.isad.delta, 0.0)


@dataclass(frozen=True, eq=False)
class NoisedSample:
    """A sample with its masks drawn.

    token_ids: int64 [columns], clean. masks: bool [rows, columns]. weights: float64 [rows, columns], what a
    masked position's cross-entropy adds to the sample's loss, 0 elsewhere. num_eligible: tokens that could
    have been masked. t and importance_weights: float64 [num_t], as drawn. t_of, position_ids, attention: see
    corruption.NoisedRows (position_ids is its source); None in rows that are the sample itself.
    """

    token_ids: np.ndarray
    masks: np.ndarray
    weights: np.ndarray
    num_eligible: int
    t: np.ndarray
    importance_weights: np.ndarray
    t_of: np.ndarray | None = None
    position_ids: np.ndarray | None = None
    attention: np.ndarray | None = None

    def row(self, number: int) -> "NoisedSample":
        """One of the rows; the losses of the rows add up to the sample's."""
        at = slice(number, number + 1)
        return replace(self, masks=self.masks[at], weights=self.weights[at])


def noise_sample(
    sample: Sample,
    t: float | np.ndarray,
    importance_weight: float | np.ndarray,
    uniforms: np.ndarray,
    noise: Noise,
) -> NoisedSample:
    """Mask a sample at t by uniforms [length], as `noise` says.

    t and its importance weight are [num_t], or one number where the corruption draws one t.
    """
    options = noise.options
    num_eligible = int(sample.eligible.sum())
    draw = Draw(
        t=np.atleast_1d(t),
        importance_weights=np.atleast_1d(importance_weight),
        uniforms=uniforms,
        eligible=sample.eligible,
        share=token_share(num_eligible, options.normalization),
        eps=options.eps,
        extra_rates=noise.extra_rates(sample),
    )
    rows = noise.corruption.corrupt(draw)
    token_ids = sample.token_ids if rows.source is None else sample.token_ids[rows.source]
    return NoisedSample(
        token_ids,
        rows.masks,
        rows.weights,
        num_eligible,
        draw.t,
        draw.importance_weights,
        rows.t_of,
        rows.source,
        rows.attention,
    )


def syrm_eligible(
    eligible: np.ndarray, is_structural: np.ndarray, extra: float, uniforms: np.ndarray
) -> np.ndarray:
    """SyRM's eligible positions: also the prompt's structural tokens and a share `extra` of its others.

    Args:
        eligible, is_structural: bool [length]; what is not eligible is the prompt.
        uniforms: float64 [length] in [0, 1); they choose the others.

    Returns:
        bool [length].
    """
    return eligible | is_structural | (uniforms < extra)
