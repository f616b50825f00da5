"""The sums of one optimizer step over its samples: collected on the device, reduced in one small message."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from mdmscale.data.batch import Batch
from mdmscale.diffusion.baseline import EmaBaseline
from mdmscale.parallel.collectives import all_reduce_sum
from mdmscale.parallel.ranks import Ranks
from mdmscale.system.transfer import Arriving, to_device


@dataclass(frozen=True)
class StepTotals:
    """The sums of a step over the global batch.

    loss: sum of the samples' losses. baseline: sum of b(t) / p(t). num_tokens: see Batch; so
    num_row_tokens and num_token_pairs.
    num_stops: ranks that want to stop. cells: float64 [4, cells], see p_pots.CellSums.
    """

    loss: float
    baseline: float
    num_tokens: int
    num_row_tokens: int
    num_token_pairs: int
    num_masked: int
    num_stops: int
    cells: np.ndarray

    @classmethod
    def of(cls, sent: Arriving) -> "StepTotals":
        """The totals that `StepSums.reduce` sent. Waits until they arrive."""
        values = sent.wait().numpy()
        loss, baseline, *counts = values[:7].tolist()
        tokens, row_tokens, pairs, masked, stops = map(int, counts)
        cells = values[7:].reshape(4, -1)
        return cls(loss, baseline, tokens, row_tokens, pairs, masked, stops, cells)


class DrawSums(NamedTuple):
    """What the forwards of some samples gave, by draw: t and 1 / p(t), float64 [draws], and sums [2, draws].

    sums: float64, losses and squared norms of the gradient of the logits.
    """

    t: np.ndarray
    importance_weights: np.ndarray
    sums: torch.Tensor


class StepSums:
    """Sums over this rank's samples. Nothing here waits for the device."""

    def __init__(self, baseline: EmaBaseline, scale: float | torch.Tensor, ranks: Ranks) -> None:
        self.baseline = baseline
        self.ranks = ranks
        self.scale = scale  # times a batch's weighted cross-entropies: its losses, in nats per token
        self.by_first_draw: dict[int, DrawSums] = {}
        self.num_tokens = self.num_row_tokens = self.num_token_pairs = self.num_masked = 0

    def add(self, batch: Batch, cross_entropies: torch.Tensor, squared_norms: torch.Tensor) -> None:
        """Add the cross-entropies and squared norms [masked] of one forward.

        A sample's rows may come in several batches; all of these have the same draws.
        """
        weights = batch.weights.double() * self.scale
        sums = torch.stack(
            [
                batch.sum_by_draw(weights * cross_entropies),
                batch.sum_by_draw(weights.square() * squared_norms),
            ]
        )
        if batch.first_draw in self.by_first_draw:
            sums += self.by_first_draw[batch.first_draw].sums
        self.by_first_draw[batch.first_draw] = DrawSums(batch.t, batch.importance_weights, sums)
        self.num_tokens += batch.num_tokens
        self.num_row_tokens += batch.num_row_tokens
        self.num_token_pairs += batch.num_token_pairs
        self.num_masked += len(batch.positions)

    def reduce(self, stop: bool) -> Arriving:
        """Start the reduction over all ranks. `stop`: whether this rank wants to stop."""
        device = self.ranks.device
        loss = torch.zeros((), dtype=torch.float64, device=device)
        cells = torch.zeros(4, len(self.baseline.edges) - 1, dtype=torch.float64, device=device)
        counts = np.zeros(6)  # b(t) / p(t), tokens, tokens of rows, pairs of tokens, masked tokens, stops
        counts[4:] = self.num_masked * self.ranks.speaks_for_slice, stop
        for draws in self.by_first_draw.values():
            losses, squared_norms = self.ranks.sum_over_sequence(draws.sums)
            if self.ranks.speaks_for_samples:
                loss += losses.sum()
                self._add_to_cells(cells, draws, losses, squared_norms)
                counts[0] += np.sum(draws.importance_weights * self.baseline.values(draws.t))
        if self.ranks.speaks_for_samples:
            counts[1:4] = self.num_tokens, self.num_row_tokens, self.num_token_pairs
        sums_sent = [loss[None], to_device(torch.from_numpy(counts), device), cells.flatten()]
        return Arriving(all_reduce_sum(torch.cat(sums_sent)))

    def _add_to_cells(
        self, cells: torch.Tensor, draws: DrawSums, losses: torch.Tensor, squared_norms: torch.Tensor
    ) -> None:
        """Add draws to `cells` [4, cells], without their importance weights 1 / p(t)."""
        importance = to_device(torch.from_numpy(draws.importance_weights), cells.device)
        plain, plain_norms = losses / importance, squared_norms / importance.square()
        last = len(self.baseline.edges) - 2
        cell_of = np.clip(np.searchsorted(self.baseline.edges, draws.t, side="right") - 1, 0, last)
        values = torch.stack([torch.ones_like(plain), plain, plain.square(), plain_norms])  # [4, draws]
        cells.index_add_(1, to_device(torch.from_numpy(cell_of), cells.device), values)
