"""Forward passes without gradients, over lists of items that are divided among the ranks by index.

Under ZeRO-3 each forward is a collective, so every rank runs the same number of forwards; a rank that has too
few items repeats some. Each result has its own entry in one array that is summed over the ranks, so results
do not depend on the number of ranks.
"""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch

from mdmscale.data.batch import Batch
from mdmscale.parallel.collectives import all_reduce_sum
from mdmscale.parallel.ranks import Ranks


class ForwardModel(Protocol):
    """What these passes call: an `Engine`, or the model itself if nothing is sharded."""

    @property
    def training(self) -> bool: ...

    def __call__(self, **inputs: Any) -> Any: ...

    def train(self, mode: bool = True) -> Any: ...

    def eval(self) -> Any: ...


@torch.no_grad()
def forward_sums(engine: ForwardModel, batch: Batch, device: torch.device) -> np.ndarray:
    """The loss and the squared norm of the logit gradient of each draw, float64 [2, draws]."""
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
    """Call `measure` for every item. Returns the results on every rank, float64 [num_items, *shape].

    Items go to the data ranks in turn. Ranks that share a sequence measure the same item; each measures its
    own slice.
    """
    results = torch.zeros(num_items, *shape, dtype=torch.float64)
    for turn in range(-(-num_items // ranks.dp_size)):
        item = turn * ranks.dp_size + ranks.dp_rank
        measured = measure(item % num_items)
        if item < num_items and ranks.speaks_for_slice:
            results[item] = torch.from_numpy(measured)
    return all_reduce_sum(results.to(ranks.device)).cpu().numpy()
