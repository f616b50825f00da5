"""An exponential moving average of the weights (train.ema_decay), kept in the state of AdamW.

The average lies beside the moments of each tensor that AdamW updates: a parameter, an fp32 master, or a
rank's shard. So DeepSpeed shards, offloads, saves and restores it as it does the moments.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from mdmscale.engine import private

AVERAGE, UPDATES = "ema", "ema_updates"  # keys in AdamW's state: the average, and the number of its updates
EXCHANGED_AT_A_TIME = 1 << 24  # elements


class AveragingAdamW(torch.optim.AdamW):
    """AdamW that also averages what it updates. A step that is skipped changes neither.

    The average begins as the weights before its first update. After k updates, the next one keeps
    min(decay, (1 + k) / (10 + k)) of it, so that it soon forgets its beginning.
    """

    def __init__(self, groups: list[dict[str, object]], decay: float, **options: Any) -> None:
        super().__init__(groups, **options)
        self.decay = decay

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update the weights, then their average. All tensors of one call have had equally many updates."""
        updated = [each for group in self.param_groups for each in group["params"] if each.grad is not None]
        beginnings = {each: each.clone() for each in updated if AVERAGE not in self.state[each]}
        result = super().step(closure)
        for each, beginning in beginnings.items():
            _begin(self.state[each], beginning)
        if updated:
            new_share = share_of_the_new(self.state[updated[0]][UPDATES], self.decay)
            for each in updated:
                self.state[each][AVERAGE].lerp_(each, new_share)
                self.state[each][UPDATES] += 1
        return result


def share_of_the_new(num_updates: torch.Tensor, decay: float) -> torch.Tensor:
    """1 - min(decay, (1 + k) / (10 + k)) after k updates, without a transfer from the device."""
    return (9 / (num_updates + 10)).clamp(min=1 - decay)


def is_averaging(optimizer: Any) -> bool:
    """Whether `optimizer`, which may be DeepSpeed's wrapper, averages what it updates."""
    return isinstance(private.adam(optimizer), AveragingAdamW)


def settle_average(optimizer: Any) -> bool:
    """After a checkpoint has been loaded: begin an average that it lacks, or drop one that is not wanted.

    Returns:
        whether it begins here, as the weights that have been loaded.
    """
    wanted, begins = is_averaging(optimizer), False
    for tensor, state in private.adam(optimizer).state.items():
        if not wanted:
            state.pop(AVERAGE, None)
            state.pop(UPDATES, None)
        elif AVERAGE not in state:
            _begin(state, tensor.detach().clone())
            begins = True
    return begins


@contextmanager
def averaged(optimizer: Any) -> Iterator[None]:
    """Within the block the model has the average as its weights; after it, its own ones, bit for bit.

    Weights and average change places, so this takes no memory. Every rank enters and leaves the block. An
    error within the block ends the run, so the weights stay exchanged: to exchange them back, a rank that
    failed would wait for the others.
    """
    states = private.adam(optimizer).state.items()
    pairs = [(tensor, state[AVERAGE]) for tensor, state in states if AVERAGE in state]
    _exchange(pairs)
    private.update_weights(optimizer)
    yield
    _exchange(pairs)
    private.update_weights(optimizer)


def _begin(state: dict[str, torch.Tensor], beginning: torch.Tensor) -> None:
    state[AVERAGE] = beginning
    state[UPDATES] = torch.zeros((), dtype=torch.float32, device=beginning.device)


@torch.no_grad()
def _exchange(pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Exchange the values of the two tensors of each pair, in parts, as shards are large."""
    for pair in pairs:
        parts = (each.view(-1).split(EXCHANGED_AT_A_TIME) for each in pair)
        for left, right in zip(*parts, strict=True):
            kept = left.clone()
            left.copy_(right)
            right.copy_(kept)
