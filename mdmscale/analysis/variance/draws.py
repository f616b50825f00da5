"""One sample's draws of every estimator in each cell of t, with their losses and exact gradients.

Legend: cells = K cells of t; params = number of chosen parameters. In each cell a sample is drawn
    three times as a single row: at t1, at t1 again with another mask, and at t2 in the same cell;
    once with each paired masking.
Draws 1 and 2 share t, and draws 1 and 3 share only the cell, so products of them give unbiased estimates.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from mdmscale.analysis.variance.maskings import MASKINGS, PAIRED, SINGLE, noise_of
from mdmscale.config.diffusion import DiffusionSection
from mdmscale.data.batch import Batch
from mdmscale.data.collate import Collator
from mdmscale.diffusion.levels import Levels
from mdmscale.diffusion.noise import NoisedSample, noise_sample
from mdmscale.diffusion.sample import Sample
from mdmscale.models.mdm import MaskedDiffusionModel

SINGLES = 3
PLAIN = 16  # draws at t in all of [0, 1], without gradients; their variance must equal A + B + C


@dataclass(frozen=True, eq=False)
class Draws:
    """The values of one sample's draws: gradients, or losses as gradients with one element.

    single: [3 K, params], cell by cell. paired: by masking the squared norms, float64 [K].
    """

    single: torch.Tensor
    paired: dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class SampleDraws:
    """The draws of one sample, as losses and as gradients.

    plain: float64 [PLAIN], losses at t uniform in [0, 1]. proxy: squared logit-gradient norms, float64 [K].
    """

    loss: Draws
    gradient: Draws
    plain: np.ndarray
    proxy: np.ndarray


class Drawer:
    """Draws the estimators of samples under `model`, with gradients for `parameters`."""

    def __init__(
        self,
        model: MaskedDiffusionModel,
        parameters: list[torch.nn.Parameter],
        options: DiffusionSection,
        edges: np.ndarray,
        collate: Collator,
        device: torch.device,
    ) -> None:
        self.model, self.parameters = model, parameters
        self.edges, self.collate, self.device = edges, collate, device
        self.noises = {masking: noise_of(masking, options) for masking in MASKINGS}

    def draw(self, sample: Sample, random: np.random.Generator) -> SampleDraws:
        """All draws of a sample. `random` belongs to this sample."""
        cells = len(self.edges) - 1
        losses: dict[str, list[float]] = {masking: [] for masking in MASKINGS}
        gradients: dict[str, list[torch.Tensor]] = {masking: [] for masking in MASKINGS}
        proxies = []
        for masking, noised in self._noised(sample, random):
            loss, gradient, proxy = self._measure(noised)
            losses[masking].append(loss)
            if masking == SINGLE:
                gradients[masking].append(gradient)
                proxies.append(proxy)
            else:  # of a pair only the squared norm is needed
                gradients[masking].append(gradient.double().square().sum().cpu())
        single_losses = torch.tensor(losses[SINGLE], dtype=torch.float64)[:, None]
        return SampleDraws(
            Draws(single_losses, {masking: np.square(losses[masking]) for masking in PAIRED}),
            Draws(
                torch.stack(gradients[SINGLE]),
                {masking: torch.stack(gradients[masking]).numpy() for masking in PAIRED},
            ),
            self._plain_losses(sample, random),
            np.array(proxies).reshape(cells, SINGLES).mean(axis=1),
        )

    def _noised(self, sample: Sample, random: np.random.Generator) -> Iterator[tuple[str, NoisedSample]]:
        length = len(sample.token_ids)
        for low, high in zip(self.edges[:-1], self.edges[1:], strict=True):
            first, other, *of_pairs = low + (high - low) * random.random(2 + len(PAIRED))
            singles = ((SINGLE, first), (SINGLE, first), (SINGLE, other))
            for masking, t in (*singles, *zip(PAIRED, of_pairs, strict=True)):
                yield masking, noise_sample(sample, Levels.at(t), random.random(length), self.noises[masking])

    def _measure(self, noised: NoisedSample) -> tuple[float, torch.Tensor, float]:
        """The loss of one draw, its gradient [params] and its squared logit-gradient norm."""
        batch = self.collate([noised]).to(self.device)
        loss, _, squared_norms = self.model(**batch.model_inputs)
        gradients = torch.autograd.grad(loss, self.parameters)
        flat = torch.cat([gradient.float().flatten() for gradient in gradients])
        proxy = (batch.weights.square() * squared_norms).double().sum()
        return float(loss.detach()), flat, float(proxy)

    @torch.no_grad()
    def _plain_losses(self, sample: Sample, random: np.random.Generator) -> np.ndarray:
        draws = [
            noise_sample(sample, Levels.at(t), random.random(len(sample.token_ids)), self.noises[SINGLE])
            for t in random.random(PLAIN)
        ]
        batch: Batch = self.collate(draws).to(self.device)
        _, losses, _ = self.model(**batch.model_inputs)
        return batch.sum_by_draw((batch.weights * losses).double()).cpu().numpy()
