"""Turns the logits of a chunk [chunk, vocab], in place, into the gradient of its weighted cross-entropies.

There are two implementations, `chunked` and `fused`; the key `model.head` chooses between them. With a
`group`, each of its ranks holds some rows of the vocabulary. The losses are then over the whole vocabulary,
gradient and squared norms are of this rank's rows, and targets count from the rank's first row.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist

LOG2E = math.log2(math.e)


class ChunkResult(NamedTuple):
    """The results for each row of a chunk, fp32 [chunk].

    losses: cross-entropy (CE) in nats.
    squared_norms: of d CE / d logits = softmax - onehot.
    factor: what is in `logits` now, multiplied by this factor, is weight * d CE / d logits.
    """

    losses: torch.Tensor
    squared_norms: torch.Tensor
    factor: torch.Tensor


Softmax = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, "dist.ProcessGroup | None"], ChunkResult]


def chunked(
    logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, group: dist.ProcessGroup | None
) -> ChunkResult:
    """One operation after the other in fp32, in the logits' own memory where they are fp32.

    It uses powers of two instead of e, because torch computes them three times as fast on the CPU.
    """
    values = logits.float()
    largest = values.amax(dim=-1)
    if group is not None:
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=group)
    torch.add(-LOG2E * largest[:, None], values, alpha=LOG2E, out=values)
    is_here = (targets >= 0) & (targets < logits.shape[-1])
    here = torch.where(is_here, targets, 0)[:, None]
    of_target = values.gather(1, here).squeeze(1) * is_here
    values.exp2_()
    sums = torch.stack([values.sum(dim=-1), of_target])  # [2, chunk]
    if group is not None:
        dist.all_reduce(sums, group=group)
    values.scatter_add_(1, here, -(is_here * sums[0])[:, None])
    losses = sums[0].log() - sums[1] / LOG2E
    squared_norms = (torch.linalg.vector_norm(values, dim=-1) / sums[0]).square()
    factor = weights / sums[0]
    if values is not logits:  # for fp32 logits the caller applies the factor, to smaller tensors
        torch.mul(values, factor[:, None], out=logits)
        factor = torch.ones_like(factor)
    return ChunkResult(losses, squared_norms, factor)


def fused(
    logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, group: dist.ProcessGroup | None
) -> ChunkResult:
    """Two kernels of torch.compile: the first reads the logits, the second turns them into their gradient.

    Only registers hold fp32 values, so bf16 logits move a fifth of the bytes that `chunked` moves.
    """
    largest, sums, of_target = _sum_up(logits, targets)
    if group is not None:
        mine = largest.clone()
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=group)
        is_here = (targets >= 0) & (targets < logits.shape[-1])
        both = torch.stack([sums * (mine - largest).exp(), is_here * (of_target + (mine - largest))])
        dist.all_reduce(both, group=group)
        sums, of_target = both
    log_sums = sums.log()
    squared_norms = _differentiate(logits, targets, weights, largest, log_sums)
    return ChunkResult(log_sums - of_target, squared_norms, torch.ones_like(log_sums))


@torch.compile(dynamic=True)
def _sum_up(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """For each row, fp32 [chunk]: the largest logit, the sum of exp(logit - largest), and target - largest.

    The last is 0 where another rank holds the target's logit.
    """
    values = logits.float()
    largest = values.amax(dim=-1)
    below = values - largest[:, None]
    return largest, below.exp().sum(dim=-1), torch.where(_onehot(logits, targets), below, 0.0).sum(dim=-1)


@torch.compile(dynamic=True)
def _differentiate(
    logits: torch.Tensor,
    targets: torch.Tensor,
    weights: torch.Tensor,
    largest: torch.Tensor,
    log_sums: torch.Tensor,
) -> torch.Tensor:
    """Turn logits into weights * (softmax - onehot); return the squared norms without weights, [chunk]."""
    below = logits.float() - largest[:, None]
    gradient = (below - log_sums[:, None]).exp() - _onehot(logits, targets).float()
    logits.copy_(weights[:, None] * gradient)
    return gradient.square().sum(dim=-1)


def _onehot(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return torch.arange(logits.shape[-1], device=logits.device) == targets[:, None]
