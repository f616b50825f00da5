"""Passes without gradients: lists of items, shared out over the ranks by index.

Every rank runs the same number of forwards (items are repeated where there are too few), because under ZeRO-3
each forward is a collective. Results are summed as disjoint entries of one array, so they do not depend on
the number of ranks.
"""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch

from mdmscale.data.batch import Batch
from mdmscale.parallel.collectives import all_reduce_sum
from mdmscale.parallel.ranks import Ranks


class ForwardModel(Protocol):
    """What these passes need: an `Engine`, or the model itself where nothing is sharded."""

    @property
    def training(self) -> bool: ...

    def __call__(self, **inputs: Any) -> Any: ...

    def train(self, mode: bool = True) -> Any: ...

    def eval(self) -> Any: ...


@torch.no_grad()
def forward_sums(engine: ForwardModel, batch: Batch, device: torch.device) -> np.ndarray:
    """Losses and squared logit-gradient norms by draw, float64 [2, draws]."""
    batch = batch.to(device)
    was_training = engine.training
    engine.eval()
    _, losses, squared_norms = engine(**batch.model_inputs)
    engine.train(was_training)
    values = (batch.weights * losses, batch.weights.square() * squared_norms)
    return torch.stack([batch.sum_by_draw(value.double()) for value in values]).cpu().numpy()


def share_out(
    measure: Callable[[int], np.ndarray], num_items: int, shape: tuple[int, ...], ranks: Ranks
) -> np.ndarray:
    """measure(item) of every item, the data ranks taking turns: float64 [num_items, *shape] on all ranks.

    Ranks that share a sequence measure the same item, each the part of its slice.
    """
    results = torch.zeros(num_items, *shape, dtype=torch.float64)
    for turn in range(-(-num_items // ranks.dp_size)):
        item = turn * ranks.dp_size + ranks.dp_rank
        measured = measure(item % num_items)
        if item < num_items and ranks.speaks_for_slice:
            results[item] = torch.from_numpy(measured)
    return all_reduce_sum(results.to(ranks.device)).cpu().numpy()
