"""The model and the data of a benchmark.

A seeded model from scratch and one micro-batch of noised samples.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from mdmscale.config.diffusion import DiffusionSection
from mdmscale.config.model import ModelSection
from mdmscale.config.section import HeadKind
from mdmscale.data.batch import Batch
from mdmscale.data.collate import Collator
from mdmscale.diffusion.levels import Levels
from mdmscale.diffusion.noise import Noise, NoisedSample, noise_sample
from mdmscale.diffusion.sample import Sample
from mdmscale.models.backbone import DTYPES, scratch_config
from mdmscale.models.compiling import compile_layers
from mdmscale.models.mdm import MaskedDiffusionModel
from mdmscale.models.shape import ModelShape, shape_of_keys

HEAD_WIDTH = 64  # as in Llama-3.2-1B
SPREAD = 10  # ratio of the longest sample to the shortest, where lengths differ


@dataclass(frozen=True)
class Sizes:
    """The sizes of a benchmark. length: tokens of a sample, or of the longest where lengths differ."""

    vocab: int
    hidden: int
    layers: int
    heads: int | None  # None: heads 64 wide, or the next width that divides `hidden`
    key_heads: int | None  # None: the same as heads
    length: int
    batch: int  # samples
    dtype: Literal["fp32", "bf16"]
    device: torch.device
    prompt: float = 0.25  # share of a sample that is never masked
    seed: int = 0

    @property
    def num_heads(self) -> int:
        if self.heads is not None:
            return self.heads
        most = max(1, self.hidden // HEAD_WIDTH)
        return next((heads for heads in range(most, 0, -1) if self.hidden % (2 * heads) == 0), 1)

    @property
    def num_key_heads(self) -> int:
        return self.num_heads if self.key_heads is None else self.key_heads

    @property
    def model_options(self) -> ModelSection:
        return ModelSection(
            tokenizer="none",  # no text is tokenised
            vocab_size=self.vocab,
            hidden_size=self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=self.num_heads,
            num_key_value_heads=self.num_key_heads,
            max_position_embeddings=self.length,
            dtype=self.dtype,
        )

    @property
    def shape(self) -> ModelShape:
        return shape_of_keys(self.model_options, self.vocab)


def make_model(sizes: Sizes, compiles: bool = False, head: HeadKind = "auto") -> MaskedDiffusionModel:
    """A bidirectional Llama on the device, with seeded weights and a head for the masked-only loss."""
    config = scratch_config(sizes.model_options, sizes.vocab)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(sizes.seed)
        backbone = AutoModelForCausalLM.from_config(
            config, dtype=DTYPES[sizes.dtype], attn_implementation="sdpa", trust_remote_code=False
        )
    backbone.config.use_cache = False
    if compiles:
        compile_layers(backbone)
    return MaskedDiffusionModel(backbone, None, head).to(sizes.device).train()


def make_samples(sizes: Sizes, masking: str, are_spread: bool = False) -> list[NoisedSample]:
    """Random tokens behind a prompt, masked at t = (i + 1/2) / batch of sample i.

    are_spread: lengths are log-uniform between length / SPREAD and length, both included.
    """
    noise = Noise(DiffusionSection.model_validate({"masking": masking}))
    draws = np.random.default_rng(sizes.seed)
    lengths = np.full(sizes.batch, sizes.length)
    if are_spread:
        shares = draws.permutation(np.arange(sizes.batch) / max(1, sizes.batch - 1))
        lengths = np.maximum(1, sizes.length * float(SPREAD) ** (shares - 1)).astype(int)
    samples = []
    for index, length in enumerate(lengths):
        sample = Sample(
            draws.integers(1, sizes.vocab, length), np.arange(length) >= int(sizes.prompt * length)
        )
        t = (index + 0.5) / sizes.batch
        samples.append(noise_sample(sample, Levels.at(t), noise.uniforms(sizes.seed, index, length), noise))
    return samples


def make_batch(sizes: Sizes, samples: list[NoisedSample], packs: bool = False) -> Batch:
    """One micro-batch on the device. The mask token is 0."""
    return Collator(mask_token_id=0, packs=packs)(samples).to(sizes.device)
