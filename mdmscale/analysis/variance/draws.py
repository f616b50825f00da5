"""Draws of an estimator, as training makes them, with their losses and exact gradients.

Legend: params = number of chosen parameters. A draw's vector is its gradient [params], then its loss less a
constant near its mean. A variance is the same with it, and its estimate is much less noisy.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from mdmscale.analysis.variance.methods import WAVE, Method
from mdmscale.analysis.variance.tails import mask_rates, tail_levels, tail_uniforms
from mdmscale.data.collate import Collator
from mdmscale.diffusion.density import DensityTable
from mdmscale.diffusion.levels import Levels
from mdmscale.diffusion.noise import Noise, NoisedSample, noise_sample
from mdmscale.diffusion.sample import Sample
from mdmscale.diffusion.t_samplers import TSampler
from mdmscale.diffusion.uniforms import Stream, generator
from mdmscale.models.mdm import MaskedDiffusionModel


@dataclass(frozen=True, eq=False)
class Estimator:
    """A method with its noise and its t-sampler, as a run with it has them."""

    method: Method
    noise: Noise
    t_sampler: TSampler

    @property
    def rows(self) -> int:
        return self.noise.corruption.num_rows

    @property
    def has_tails(self) -> bool:
        """Whether it is measured with more draws in the tails than training has, see tails.py.

        Spread samples are drawn as they are, because their t depend on each other.
        """
        return self.method.together == 1 and not self.noise.options.weighs_by_count

    @cached_property
    def proposal(self) -> DensityTable:
        """The density over u of the measurement."""
        if not self.has_tails:
            return DensityTable.uniform()
        return tail_levels(self.t_sampler.density, self.noise.options.eps, self.noise.corruption)

    @cached_property
    def measured_sampler(self) -> TSampler:
        """The sampler of the measurement. Independent samples take one u from each stratum of a wave."""
        if self.method.together > 1:
            return self.t_sampler
        return replace(self.t_sampler, global_batch_size=WAVE, strata=WAVE, low_discrepancy=False)

    def levels(self, index: int, length: int, num_t: int | None = None) -> tuple[Levels, np.ndarray]:
        """The noise levels of sample `index`, and their weights in a mean over draws, float64 [num_t]."""
        num = self.noise.corruption.num_t(length) if num_t is None else num_t
        levels = self.measured_sampler.draw(index, num)
        u, weights = self.proposal.draw(levels.u)
        return replace(levels, u=np.minimum(u, np.nextafter(1, 0))), weights

    def noised(
        self, sample: Sample, levels: Levels, seed: int, index: int, replicate: int = 0
    ) -> tuple[NoisedSample, float]:
        """Sample `index` masked at `levels`, and the mask's weight in a mean over draws.

        Every method has the same uniforms, apart from those moved to the tails.
        """
        noise, random = self.noise, generator(seed, Stream.VARIANCE, index, replicate)
        uniforms, weight = random.random((noise.corruption.num_uniforms, len(sample.token_ids))), 1.0
        if self.has_tails:
            rates = mask_rates(noise.corruption, levels.t, noise.options.eps)
            uniforms, weight = tail_uniforms(uniforms, sample.eligible, rates, random)
        return noise_sample(sample, levels, uniforms, noise), weight

    def draw(self, sample: Sample, seed: int, index: int) -> tuple[NoisedSample, float]:
        """Sample `index` noised, and its weight in a mean over draws."""
        levels, weights = self.levels(index, len(sample.token_ids))
        noised, weight = self.noised(sample, levels, seed, index)
        return noised, weight * float(weights.prod())


@dataclass(frozen=True, eq=False)
class Draw:
    """vector: float32 [params + 1]. proxy: the squared norm of the logit gradient."""

    vector: torch.Tensor
    loss: float
    proxy: float


class Gauge:
    """Measures draws under `model`, with gradients for `parameters`.

    usual_loss: the constant that vectors have taken off their loss; 0 until a pilot has measured it.
    """

    def __init__(
        self,
        model: MaskedDiffusionModel,
        parameters: list[torch.nn.Parameter],
        collate: Collator,
        device: torch.device,
    ) -> None:
        self.model, self.parameters, self.collate, self.device = model, parameters, collate, device
        self.usual_loss = 0.0
        self.sizes = [parameter.numel() for parameter in parameters]

    @property
    def width(self) -> int:
        """The length of a draw's vector."""
        return sum(self.sizes) + 1

    def zeros(self, *shape: int) -> torch.Tensor:
        return torch.zeros(*shape, self.width, device=self.device)

    def measure(self, noised: NoisedSample) -> Draw:
        """The loss and the gradient of a draw. One without a masked token needs no forward."""
        if not noised.masks.any():
            vector = self.zeros()
            vector[-1] = -self.usual_loss
            return Draw(vector, 0.0, 0.0)
        batch = self.collate([noised]).to(self.device)
        loss, _, squared_norms = self.model(**batch.model_inputs)
        gradients = torch.autograd.grad(loss, self.parameters)
        centred = (loss.detach().float() - self.usual_loss).reshape(1)
        vector = torch.cat([*(gradient.float().flatten() for gradient in gradients), centred])
        proxy = (batch.weights.square() * squared_norms).double().sum()
        return Draw(vector, float(loss.detach()), float(proxy))
