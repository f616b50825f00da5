"""Attention within the rows of a packed batch, which lie end to end: no position sees another row's.

Rows pay for their own length, squared, and nothing for each other's.

Legend: tokens = all rows' together; heads; width = of a head.
"""

from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AttentionInterface, PreTrainedModel

from mdmscale.system.transfer import to_device

NAME = "mdmscale_packed"


class PackedRows(NamedTuple):
    """Rows that lie end to end, as tensors: for each tuple of lengths a layer would be compiled anew.

    lengths: int64 [rows], on the host, where the loop over rows is.
    offsets: int32 [rows + 1], on the device: where rows begin and the last ends.
    longest: of the lengths.
    """

    lengths: torch.Tensor
    offsets: torch.Tensor
    longest: int

    @classmethod
    def of(cls, row_lengths: tuple[int, ...], device: torch.device) -> "PackedRows":
        """The rows of these lengths; the host does not wait for the device to have them."""
        offsets = torch.tensor((0, *row_lengths)).cumsum(0).int()
        return cls(torch.tensor(row_lengths), to_device(offsets, device), max(row_lengths))


def attend_in_rows(model: PreTrainedModel) -> None:
    """Let `model` take packed rows too, which its forward is then given as `packed_rows`."""
    AttentionInterface.register(NAME, _attend)
    model.config._attn_implementation = NAME


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    packed_rows: PackedRows | None,
    scaling: float | None,
) -> torch.Tensor:
    """Attention of rows [rows, heads, length, width] under a mask that broadcasts, or of packed ones."""
    if packed_rows is not None:
        return packed_attention(query, key, value, packed_rows, mask, scaling)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling, enable_gqa=True)


def packed_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rows: PackedRows,
    pairs: torch.Tensor | None = None,
    scaling: float | None = None,
) -> torch.Tensor:
    """Attention of each row to itself, [1, heads, tokens, width].

    Args:
        query: [1, heads, tokens, width].
        key, value: [1, key heads, tokens, width], the key heads dividing the heads.
        rows: whose lengths add up to tokens.
        pairs: bool [1, 1, longest, longest], which position sees which in a row; None: every one sees all.
        scaling: of the scores; None means 1 / sqrt(width).
    """
    is_half = query.dtype in (torch.bfloat16, torch.float16)
    if query.is_cuda and is_half and pairs is None and scaling in (None, query.shape[-1] ** -0.5):
        return _varlen_attention(query, key, value, rows)
    if torch.compiler.is_compiling():  # which would unroll the loop over rows, and anew for other lengths
        return row_by_row_op(query, key, value, rows.lengths, pairs, scaling)
    return row_by_row(query, key, value, rows.lengths, pairs, scaling)


def row_by_row(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: torch.Tensor,
    pairs: torch.Tensor | None,
    scaling: float | None,
) -> torch.Tensor:
    """`packed_attention` by a call for each row, or for neighbours of one length, such as pairs."""
    groups = [(length, len(list(group))) for length, group in groupby(lengths.tolist())]
    sizes = [length * rows for length, rows in groups]
    # split once: each slice by itself would have a gradient of all tokens
    split = (each.squeeze(0).split(sizes, dim=1) for each in (query, key, value))
    parts = []
    for (length, rows), *alike in zip(groups, *split, strict=True):
        queries, keys, values = (each.unflatten(1, (rows, length)).transpose(0, 1) for each in alike)
        attended = F.scaled_dot_product_attention(
            queries,
            keys,
            values,
            attn_mask=None if pairs is None else pairs[..., :length, :length],
            scale=scaling,
            enable_gqa=True,
        )  # [rows, heads, length, width]
        parts.append(attended.transpose(0, 1).flatten(1, 2))
    return torch.cat(parts, dim=1)[None]


def _varlen_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rows: PackedRows
) -> torch.Tensor:
    """One kernel for all rows, torch's flash attention for rows of any length."""
    from torch.nn.attention.varlen import varlen_attn

    repeats = query.shape[1] // key.shape[1]  # varlen_attn of torch 2.10 wants as many heads for keys
    key, value = (each.repeat_interleave(repeats, dim=1) if repeats > 1 else each for each in (key, value))
    # [tokens, heads, width] each
    queries, keys, values = (each[0].transpose(0, 1) for each in (query, key, value))
    attended = varlen_attn(queries, keys, values, rows.offsets, rows.offsets, rows.longest, rows.longest)
    assert isinstance(attended, torch.Tensor)  # nothing beside it was asked for
    return attended.transpose(0, 1)[None]


@torch.library.custom_op("mdmscale::row_by_row", mutates_args=())
def row_by_row_op(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: torch.Tensor,
    pairs: torch.Tensor | None,
    scaling: float | None,
) -> torch.Tensor:
    """`row_by_row` as the compiler sees it: one operation, which it does not look into."""
    return row_by_row(query, key, value, lengths, pairs, scaling).contiguous()


@torch.library.custom_op("mdmscale::row_by_row_backward", mutates_args=())
def _row_by_row_backward(
    gradient: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: torch.Tensor,
    pairs: torch.Tensor | None,
    scaling: float | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of query, key and value, for which the rows attend once more.

    By torch.func, as torch.autograd is out of order within an operation.
    """
    attend = partial(row_by_row, lengths=lengths, pairs=pairs, scaling=scaling)
    pull_back = torch.func.vjp(attend, query, key, value)[1]
    query_gradient, key_gradient, value_gradient = (each.contiguous() for each in pull_back(gradient))
    return query_gradient, key_gradient, value_gradient


@row_by_row_op.register_fake
def _(query: torch.Tensor, *_: Any) -> torch.Tensor:
    return torch.empty_like(query, memory_format=torch.contiguous_format)


@_row_by_row_backward.register_fake
def _(_: Any, *inputs: Any) -> tuple[torch.Tensor, ...]:
    return tuple(torch.empty_like(each, memory_format=torch.contiguous_format) for each in inputs[:3])


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    *tensors, ctx.scaling = inputs
    ctx.save_for_backward(*tensors)


def _pass_back(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    return *_row_by_row_backward(gradient, *ctx.saved_tensors, ctx.scaling), None, None, None


row_by_row_op.register_autograd(_pass_back, setup_context=_keep_inputs)


def _attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    packed_rows: PackedRows | None = None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """`attention` as the layers of transformers call it."""
    attended = attention(query, key, value, attention_mask, packed_rows, scaling)
    return attended.transpose(1, 2).contiguous(), None
