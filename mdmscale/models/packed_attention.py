"""Attention within the rows of a packed batch, which lie end to end: no position sees another row's.

Rows pay for their own length, squared, and nothing for each other's.

Legend: tokens = all rows' together; heads; width = of a head.
"""

from functools import lru_cache
from itertools import groupby
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AttentionInterface, PreTrainedModel

NAME = "mdmscale_packed"


def attend_in_rows(model: PreTrainedModel) -> None:
    """Let `model` take packed rows too, whose lengths its forward is then given as `row_lengths`."""
    AttentionInterface.register(NAME, _attend)
    model.config._attn_implementation = NAME


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    row_lengths: tuple[int, ...] | None,
    scaling: float | None,
) -> torch.Tensor:
    """Attention of rows [rows, heads, length, width] under a mask that broadcasts, or of packed ones."""
    if row_lengths is not None:
        return packed_attention(query, key, value, row_lengths, mask, scaling)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling, enable_gqa=True)


def packed_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    row_lengths: tuple[int, ...],
    pairs: torch.Tensor | None = None,
    scaling: float | None = None,
) -> torch.Tensor:
    """Attention of each row to itself, [1, heads, tokens, width].

    Args:
        query: [1, heads, tokens, width].
        key, value: [1, key heads, tokens, width], the key heads dividing the heads.
        row_lengths: of the rows, which add up to tokens.
        pairs: bool [1, 1, longest, longest], which position sees which in a row; None: every one sees all.
        scaling: of the scores; None means 1 / sqrt(width).
    """
    is_half = query.dtype in (torch.bfloat16, torch.float16)
    if query.is_cuda and is_half and pairs is None and scaling in (None, query.shape[-1] ** -0.5):
        return _varlen_attention(query, key, value, row_lengths)
    parts, start = [], 0
    for length, group in groupby(row_lengths):  # neighbours of one length, such as pairs, in one call
        rows = len(list(group))
        at = slice(start, start + rows * length)
        start = at.stop
        attended = F.scaled_dot_product_attention(
            _unpacked(query[:, :, at], rows),
            _unpacked(key[:, :, at], rows),
            _unpacked(value[:, :, at], rows),
            attn_mask=None if pairs is None else pairs[..., :length, :length],
            scale=scaling,
            enable_gqa=True,
        )  # [rows, heads, length, width]
        parts.append(attended.transpose(0, 1).flatten(1, 2)[None])
    return torch.cat(parts, dim=2)


def _unpacked(tensor: torch.Tensor, rows: int) -> torch.Tensor:
    """[1, heads, rows * length, width] as [rows, heads, length, width]."""
    return tensor[0].unflatten(1, (rows, -1)).transpose(0, 1)


def _varlen_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, row_lengths: tuple[int, ...]
) -> torch.Tensor:
    """One kernel for all rows, torch's flash attention for rows of any length."""
    from torch.nn.attention.varlen import varlen_attn

    repeats = query.shape[1] // key.shape[1]  # varlen_attn of torch 2.10 wants as many heads for keys
    key, value = (each.repeat_interleave(repeats, dim=1) if repeats > 1 else each for each in (key, value))
    offsets, longest = _offsets(row_lengths, query.device), max(row_lengths)
    # [tokens, heads, width] each
    queries, keys, values = (each[0].transpose(0, 1) for each in (query, key, value))
    attended = varlen_attn(queries, keys, values, offsets, offsets, longest, longest)
    assert isinstance(attended, torch.Tensor)  # nothing beside it was asked for
    return attended.transpose(0, 1)[None]


@lru_cache(maxsize=8)  # all layers of a forward ask for the same
def _offsets(row_lengths: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Where rows begin and the last ends: int32 [rows + 1]."""
    lengths = torch.tensor((0, *row_lengths))
    return lengths.cumsum(0).int().to(device)


def _attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    row_lengths: tuple[int, ...] | None = None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """`attention` as the layers of transformers call it."""
    attended = attention(query, key, value, attention_mask, row_lengths, scaling)
    return attended.transpose(1, 2).contiguous(), None
