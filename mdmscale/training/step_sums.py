"""What one optimizer step sums over its samples, gathered on the device and reduced in one small message."""

from dataclasses import dataclass

import numpy as np
import torch

from mdmscale.data.batch import Batch
from mdmscale.diffusion.baseline import EmaBaseline
from mdmscale.diffusion.objective import per_sample
from mdmscale.parallel.collectives import all_reduce_sum
from mdmscale.parallel.ranks import Ranks
from mdmscale.system.transfer import Arriving, to_device


@dataclass(frozen=True)
class StepTotals:
    """A step's sums over the global batch.

    loss: of the samples' losses. baseline: of b(t) / p(t). cells: float64 [4, cells], see p_pots.CellSums.
    """

    loss: float
    baseline: float
    num_tokens: int
    num_pairs: int
    num_masked: int
    num_stops: int
    cells: np.ndarray

    @classmethod
    def of(cls, sent: Arriving) -> "StepTotals":
        """The totals that `StepSums.reduce` sent, once they are here."""
        values = sent.wait().numpy()
        loss, baseline, *counts = values[:6].tolist()
        tokens, pairs, masked, stops = map(int, counts)
        return cls(loss, baseline, tokens, pairs, masked, stops, values[6:].reshape(4, -1))


class StepSums:
    """Sums over this rank's samples. Nothing here waits for the device."""

    def __init__(self, baseline: EmaBaseline, scale: float | torch.Tensor, ranks: Ranks) -> None:
        self.baseline = baseline
        self.ranks = ranks
        device = ranks.device
        self.scale = scale  # what makes a batch's weights its losses, in nats a token
        self.cells = torch.zeros(4, len(baseline.edges) - 1, dtype=torch.float64, device=device)
        self.loss = torch.zeros((), dtype=torch.float64, device=device)
        self.counts = np.zeros(3)  # b(t) / p(t), tokens, pairs of tokens
        self.num_masked = 0

    def add(self, forwards: list[tuple[Batch, torch.Tensor, torch.Tensor]]) -> None:
        """Count in a micro-batch, given its forwards: batch, losses and squared norms [masked] of each."""
        first = forwards[0][0]
        losses = torch.zeros(first.num_samples, dtype=torch.float64, device=self.loss.device)
        squared_norms = torch.zeros_like(losses)
        for batch, cross_entropies, norms in forwards:
            weights = batch.weights.double() * self.scale
            losses += per_sample(weights * cross_entropies, batch.draw_of, batch.num_samples)
            squared_norms += per_sample(weights.square() * norms, batch.draw_of, batch.num_samples)
        losses, squared_norms = self.ranks.sum_over_sequence(torch.stack([losses, squared_norms]))
        num_masked = sum(len(batch.positions) for batch, _, _ in forwards)
        if self.ranks.speaks_for_slice:
            self.num_masked += num_masked
        if not self.ranks.speaks_for_samples:
            return
        self.loss += losses.sum()
        # 1 / p, which brought the losses here, is taken out again: cells hold the estimator itself.
        importance = to_device(torch.from_numpy(first.importance_weights), losses.device)
        plain, plain_norms = losses / importance, squared_norms / importance.square()
        cells = to_device(torch.from_numpy(self._cells_of(first.t)), losses.device)
        self.cells.index_add_(
            1, cells, torch.stack([torch.ones_like(plain), plain, plain.square(), plain_norms])
        )
        value = float(np.sum(first.importance_weights * self.baseline.values(first.t)))
        self.counts += (value, first.num_tokens, first.num_pairs)

    def reduce(self, stop: bool) -> Arriving:
        """Send the totals over all ranks on their way; `stop` is whether this one wants to stop."""
        counts = torch.tensor([*self.counts, self.num_masked, stop], dtype=torch.float64)
        sums = [self.loss[None], to_device(counts, self.loss.device), self.cells.flatten()]
        return Arriving(all_reduce_sum(torch.cat(sums)))

    def _cells_of(self, t: np.ndarray) -> np.ndarray:
        last = len(self.baseline.edges) - 2
        return np.clip(np.searchsorted(self.baseline.edges, t, side="right") - 1, 0, last)
