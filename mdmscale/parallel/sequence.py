"""Sequence parallelism (DeepSpeed-Ulysses, arXiv 2309.14509): each rank holds a slice of every row.

Every layer except attention works on single tokens and needs nothing from other slices. Attention needs whole
rows: before it, an all-to-all turns slices with all heads into whole rows with some of the heads; after it,
another one turns them back.

Legend: rows; heads = attention heads; slice = length / sp_size tokens; width = of one head.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from transformers import AttentionInterface, PreTrainedModel

from mdmscale.models.packed_attention import PackedRows, attention, config_of
from mdmscale.parallel.ranks import Ranks

NAME = "mdmscale_ulysses"
HEADS, TOKENS = 1, 2  # dimensions


def split_sequences(model: PreTrainedModel, ranks: Ranks) -> None:
    """Let `model` attend over all slices of its rows. Its inputs are from now on this rank's slices."""
    if ranks.sp_group is None:
        return

    def attend(
        module: nn.Module,
        query: torch.Tensor,  # [rows, heads, slice, width]
        key: torch.Tensor,  # [rows, key heads, slice, width]
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,  # bool [rows, 1, 1 or length, length]; packed: see Batch
        packed_rows: PackedRows | None = None,
        scaling: float | None = None,
        **_: Any,
    ) -> tuple[torch.Tensor, None]:
        heads, key_heads = query.shape[1], key.shape[1]
        if key_heads % ranks.sp_size:  # they cannot be split over ranks, so each head gets its own copy
            key, value = (each.repeat_interleave(heads // key_heads, dim=1) for each in (key, value))
        group = ranks.sp_group
        query, key, value = (_Exchange.apply(each, HEADS, TOKENS, group) for each in (query, key, value))
        is_causal = config_of(module).is_causal
        attended = attention(query, key, value, attention_mask, packed_rows, scaling, is_causal)
        # now [rows, heads / ranks, length, width]
        attended = _Exchange.apply(attended, TOKENS, HEADS, group)  # [rows, heads, slice, width]
        return attended.transpose(1, 2).contiguous(), None

    AttentionInterface.register(NAME, attend)
    model.config._attn_implementation = NAME


def _exchange(tensor: torch.Tensor, scattered: int, gathered: int, group: Any) -> torch.Tensor:
    """All-to-all: split along dimension `scattered`, one part per rank, and join along `gathered`."""
    ranks = dist.get_world_size(group)
    sent = torch.stack([part.contiguous() for part in tensor.chunk(ranks, scattered)])  # [ranks, ...]
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent, group=group)
    return torch.cat(list(received), dim=gathered)


class _Exchange(torch.autograd.Function):
    """`_exchange` with its gradient, which is the reverse exchange."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, scattered: int, gathered: int, group: Any) -> torch.Tensor:
        ctx.reverse = (gathered, scattered, group)
        return _exchange(tensor, scattered, gathered, group)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        return _exchange(gradient, *ctx.reverse), None, None, None
