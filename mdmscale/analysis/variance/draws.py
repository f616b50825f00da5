"""One sample's draws of every estimator, cell by cell of t, with their losses and exact gradients.

Legend: cells = K cells of t; params = number of chosen parameters. In each cell a sample is drawn
    three times alone:  at t1, at t1 again with other masks, and at another t2 of the cell;
    once as a MIRROR pair and once as a complement pair.
What follows from products of these draws is unbiased: draws 1 and 2 share t, draws 1 and 3 only the cell.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from mdmscale.config.diffusion import DiffusionSection
from mdmscale.data.batch import Batch
from mdmscale.data.collate import Collator
from mdmscale.diffusion.noise import Noise, NoisedSample, noise_sample
from mdmscale.diffusion.sample import Sample
from mdmscale.models.mdm import MaskedDiffusionModel

SINGLES = 3
PLAIN = 16  # draws at t over all of [0, 1], without gradients: what the sum A + B + C is checked against


@dataclass(frozen=True, eq=False)
class Draws:
    """What one sample's draws gave. A loss counts as a gradient of one number.

    single: [3 K, params], cell by cell. mirror, complement: squared norms, float64 [K].
    """

    single: torch.Tensor
    mirror: np.ndarray
    complement: np.ndarray


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
    """Draws samples' estimators of `model` with gradients for `parameters`."""

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
        self.noises = {
            masking: Noise(options.model_copy(update={"masking": masking, "isad": None, "syrm": None}))
            for masking in ("bernoulli", "mirror", "complement")
        }

    def draw(self, sample: Sample, random: np.random.Generator) -> SampleDraws:
        """All draws of a sample, from its own generator."""
        cells = len(self.edges) - 1
        losses: dict[str, list[float]] = {"bernoulli": [], "mirror": [], "complement": []}
        gradients: dict[str, list[torch.Tensor]] = {"bernoulli": [], "mirror": [], "complement": []}
        proxies = []
        for masking, noised in self._noised(sample, random):
            loss, gradient, proxy = self._measure(noised)
            losses[masking].append(loss)
            if masking == "bernoulli":
                gradients[masking].append(gradient)
                proxies.append(proxy)
            else:  # of a pair only its size is needed
                gradients[masking].append(gradient.double().square().sum().cpu())
        single_losses = torch.tensor(losses["bernoulli"], dtype=torch.float64)[:, None]
        return SampleDraws(
            Draws(single_losses, *(np.square(losses[masking]) for masking in ("mirror", "complement"))),
            Draws(
                torch.stack(gradients["bernoulli"]),
                *(torch.stack(gradients[masking]).numpy() for masking in ("mirror", "complement")),
            ),
            self._plain_losses(sample, random),
            np.array(proxies).reshape(cells, SINGLES).mean(axis=1),
        )

    def _noised(self, sample: Sample, random: np.random.Generator) -> Iterator[tuple[str, NoisedSample]]:
        length = len(sample.token_ids)
        for low, high in zip(self.edges[:-1], self.edges[1:], strict=True):
            first, other, mirror, complement = low + (high - low) * random.random(4)
            for masking, t in (
                ("bernoulli", first),
                ("bernoulli", first),
                ("bernoulli", other),
                ("mirror", mirror),
                ("complement", complement),
            ):
                yield masking, noise_sample(sample, t, 1.0, random.random(length), self.noises[masking])

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
            noise_sample(sample, t, 1.0, random.random(len(sample.token_ids)), self.noises["bernoulli"])
            for t in random.random(PLAIN)
        ]
        batch: Batch = self.collate(draws).to(self.device)
        _, losses, _ = self.model(**batch.model_inputs)
        return batch.sum_by_draw((batch.weights * losses).double()).cpu().numpy()
