"""From a clean sample to a noised one: the config's masks and the weights that make its loss unbiased."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mdmscale.config.diffusion import DiffusionSection, ISADSection, SyRMSection
from mdmscale.diffusion.masking import copy_rates, draw_masks, position_rates, syrm_eligible
from mdmscale.diffusion.objective import position_weight
from mdmscale.diffusion.sample import Sample
from mdmscale.diffusion.uniforms import Stream, mask_uniforms
from mdmscale.system.errors import UserError

if TYPE_CHECKING:  # workers that make batches start a second earlier without it
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class Noise:
    """How samples are masked: the config's options, and the tokens that ISAD and SyRM look for.

    delimiters, structural: bool [vocab], True at ISAD's and SyRM's tokens; None where the method is off.
    """

    options: DiffusionSection
    delimiters: np.ndarray | None = None
    structural: np.ndarray | None = None

    def widened(self, sample: Sample, seed: int, index: int) -> Sample:
        """Training sample `index` with SyRM's prompt tokens eligible; as it is where SyRM is off."""
        if self.options.syrm is None or self.structural is None:
            return sample
        uniforms = mask_uniforms(seed, index, len(sample.token_ids), Stream.SYRM)
        is_structural = self.structural[sample.token_ids]
        eligible = syrm_eligible(sample.eligible, is_structural, self.options.syrm.extra, uniforms)
        return Sample(sample.token_ids, eligible)


@dataclass(frozen=True, eq=False)
class NoisedSample:
    """A sample with its masks drawn.

    token_ids: int64 [length], clean. masks: bool [copies, length]. weights: float64 [copies, length], what a
    masked position's cross-entropy adds to the sample's loss, 0 elsewhere. num_eligible: tokens that could
    have been masked. t and importance_weight: as they were drawn.
    """

    token_ids: np.ndarray
    masks: np.ndarray
    weights: np.ndarray
    num_eligible: int
    t: float
    importance_weight: float

    def copy(self, number: int) -> "NoisedSample":
        """One row of a pair; the losses of its rows add up to the pair's."""
        row = slice(number, number + 1)
        return NoisedSample(
            self.token_ids,
            self.masks[row],
            self.weights[row],
            self.num_eligible,
            self.t,
            self.importance_weight,
        )


def noise_sample(
    sample: Sample, t: float, importance_weight: float, uniforms: np.ndarray, noise: Noise
) -> NoisedSample:
    """Mask a sample at t by uniforms [length], as `noise` says."""
    options = noise.options
    is_delimiter = None if noise.delimiters is None else noise.delimiters[sample.token_ids]
    rates = position_rates(
        copy_rates(options.masking, t, options.eps),
        sample.eligible,
        is_delimiter,
        options.isad.delta if options.isad else 0.0,
    )
    masks = draw_masks(uniforms, rates)
    num_eligible = int(sample.eligible.sum())
    weights = np.zeros(masks.shape)
    weights[masks] = position_weight(
        num_eligible, rates[masks], importance_weight, len(masks), options.normalization
    )
    return NoisedSample(sample.token_ids, masks, weights, num_eligible, t, importance_weight)


def make_noise(options: DiffusionSection, tokenizer: "PreTrainedTokenizerBase", vocab_size: int) -> Noise:
    """Find the tokens that ISAD and SyRM name.

    Raises:
        UserError: for ids beyond the vocabulary, texts without tokens, patterns that match none.
    """
    delimiters = structural = None
    if options.isad is not None:
        delimiters = _table(_delimiter_ids(options.isad, tokenizer), vocab_size, "diffusion.isad.tokens")
    if options.syrm is not None:
        structural = _table(_structural_ids(options.syrm, tokenizer), vocab_size, "diffusion.syrm.tokens")
    return Noise(options, delimiters, structural)


def _delimiter_ids(isad: ISADSection, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    ids: list[int] = []
    for token in isad.tokens:
        found = [token] if isinstance(token, int) else tokenizer.encode(token, add_special_tokens=False)
        if not found:
            raise UserError(f"diffusion.isad.tokens: {token!r} has no token in this tokenizer")
        ids += found
    return ids


def _structural_ids(syrm: SyRMSection, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    if syrm.pattern is None:
        return syrm.tokens
    pattern = re.compile(syrm.pattern)
    special = set(tokenizer.all_special_ids)
    matching = [
        token_id
        for token_id in range(len(tokenizer))
        if token_id not in special and pattern.search(str(tokenizer.decode([token_id])))
    ]
    if not matching:
        raise UserError(f"diffusion.syrm.pattern = {syrm.pattern!r} matches none of the tokenizer's tokens")
    return syrm.tokens + matching


def _table(ids: list[int], vocab_size: int, name: str) -> np.ndarray:
    beyond = [token_id for token_id in ids if not 0 <= token_id < vocab_size]
    if beyond:
        raise UserError(f"{name}: id {beyond[0]} is not among the model's {vocab_size} tokens")
    table = np.zeros(vocab_size, dtype=bool)
    table[ids] = True
    return table
