"""Attention within the rows of a packed batch, which lie end to end: no position attends to another row.

Each row costs its own length squared, and nothing for the other rows.

Legend: tokens = of all rows together; heads = attention heads; width = of one head.
"""

from functools import cache, partial
from inspect import signature
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AttentionInterface, PreTrainedModel

from mdmscale.system.transfer import to_device

NAME = "mdmscale_packed"


class PackedRows(NamedTuple):
    """The lengths of rows that lie end to end.

    They are tensors, because torch.compile would compile a layer again for each new tuple of lengths.

    lengths: int64 [rows], on the host, where the loop over rows runs.
    offsets: int32 [rows + 1], on the device: where each row begins, and where the last one ends.
    longest: the largest length.
    """

    lengths: torch.Tensor
    offsets: torch.Tensor
    longest: int

    @classmethod
    def of(cls, row_lengths: tuple[int, ...], device: torch.device) -> "PackedRows":
        """Rows of these lengths. The host does not wait for the copy to the device."""
        offsets = torch.tensor((0, *row_lengths)).cumsum(0).int()
        return cls(torch.tensor(row_lengths), to_device(offsets, device), max(row_lengths))


def attend_in_rows(model: PreTrainedModel) -> None:
    """Let `model` take packed rows too; its forward gets them as the argument `packed_rows`."""
    AttentionInterface.register(NAME, _attend)
    model.config._attn_implementation = NAME


def config_of(module: nn.Module) -> Any:
    """The model's config, which every attention layer of transformers holds."""
    return module.config


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    packed_rows: PackedRows | None,
    scaling: float | None,
    is_causal: bool = False,
) -> torch.Tensor:
    """Attention of rows [rows, heads, length, width] under a mask that broadcasts, or of packed rows.

    is_causal: a position attends to itself and to earlier ones only; the mask is left out, because padding is
    at the end of rows.
    """
    mask = None if is_causal else mask
    if packed_rows is not None:
        return packed_attention(query, key, value, packed_rows, mask, scaling, is_causal)
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=is_causal, scale=scaling, enable_gqa=True
    )


def packed_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rows: PackedRows,
    visible: torch.Tensor | None = None,
    scaling: float | None = None,
    is_causal: bool = False,
) -> torch.Tensor:
    """Attention of each row to itself, [1, heads, tokens, width].

    Args:
        query: [1, heads, tokens, width].
        key, value: [1, key heads, tokens, width]; the number of key heads divides that of heads.
        rows: whose lengths add up to tokens.
        visible: bool [1, 1, longest, longest], which position of a row attends to which; None: all to all.
        scaling: factor of the scores; None means 1 / sqrt(width).
        is_causal: a position attends to itself and to earlier ones of its row only; `visible` must be None.
    """
    is_half = query.dtype in (torch.bfloat16, torch.float16)
    if query.is_cuda and is_half and visible is None and scaling in (None, query.shape[-1] ** -0.5):
        return _varlen_attention(query, key, value, rows, is_causal)
    if torch.compiler.is_compiling():  # it would unroll the loop over rows, again for each set of lengths
        return row_by_row_op(query, key, value, rows.lengths, visible, scaling, is_causal)
    return row_by_row(query, key, value, rows.lengths, visible, scaling, is_causal)


def row_by_row(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: torch.Tensor,
    visible: torch.Tensor | None,
    scaling: float | None,
    is_causal: bool,
) -> torch.Tensor:
    """`packed_attention` with one call per row, or for neighbours of one length, such as MIRROR pairs."""
    groups = [(length, len(list(group))) for length, group in groupby(lengths.tolist())]
    sizes = [length * rows for length, rows in groups]
    # one split, because each separate slice would make a gradient of the size of all tokens
    split = (each.squeeze(0).split(sizes, dim=1) for each in (query, key, value))
    parts = []
    for (length, rows), *alike in zip(groups, *split, strict=True):
        queries, keys, values = (each.unflatten(1, (rows, length)).transpose(0, 1) for each in alike)
        attended = F.scaled_dot_product_attention(
            queries,
            keys,
            values,
            attn_mask=None if visible is None else visible[..., :length, :length],
            is_causal=is_causal,
            scale=scaling,
            enable_gqa=True,
        )  # [rows, heads, length, width]
        parts.append(attended.transpose(0, 1).flatten(1, 2))
    return torch.cat(parts, dim=1)[None]


def _varlen_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rows: PackedRows, is_causal: bool
) -> torch.Tensor:
    """All rows in one kernel: torch's flash attention for rows of different lengths."""
    from torch.nn.attention.varlen import varlen_attn

    repeats = query.shape[1] // key.shape[1]  # varlen_attn of torch 2.10 needs as many key heads as heads
    key, value = (each.repeat_interleave(repeats, dim=1) if repeats > 1 else each for each in (key, value))
    # [tokens, heads, width] each
    queries, keys, values = (each[0].transpose(0, 1) for each in (query, key, value))
    options = _causal_option() if is_causal else {}
    attended = varlen_attn(
        queries, keys, values, rows.offsets, rows.offsets, rows.longest, rows.longest, **options
    )
    assert isinstance(attended, torch.Tensor)  # it returns a tuple only where more is asked for
    return attended.transpose(0, 1)[None]


@cache
def _causal_option() -> dict[str, Any]:
    """The argument that makes torch's varlen_attn causal: torch 2.10 has is_causal, later ones a window."""
    from torch.nn.attention.varlen import varlen_attn

    has_window = "window_size" in signature(varlen_attn).parameters
    return {"window_size": (-1, 0)} if has_window else {"is_causal": True}


@torch.library.custom_op("mdmscale::row_by_row", mutates_args=())
def row_by_row_op(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: torch.Tensor,
    visible: torch.Tensor | None,
    scaling: float | None,
    is_causal: bool,
) -> torch.Tensor:
    """`row_by_row` as a single operation that torch.compile does not look into."""
    return row_by_row(query, key, value, lengths, visible, scaling, is_causal).contiguous()


@torch.library.custom_op("mdmscale::row_by_row_backward", mutates_args=())
def _row_by_row_backward(
    gradient: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: torch.Tensor,
    visible: torch.Tensor | None,
    scaling: float | None,
    is_causal: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of query, key and value. It computes the attention once more.

    It uses torch.func, because torch.autograd does not work inside a custom operation.
    """
    attend = partial(row_by_row, lengths=lengths, visible=visible, scaling=scaling, is_causal=is_causal)
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
    *tensors, ctx.scaling, ctx.is_causal = inputs
    ctx.save_for_backward(*tensors)


def _pass_back(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    gradients = _row_by_row_backward(gradient, *ctx.saved_tensors, ctx.scaling, ctx.is_causal)
    return *gradients, None, None, None, None


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
    """`attention` with the arguments that the layers of transformers pass."""
    is_causal = config_of(module).is_causal
    attended = attention(query, key, value, attention_mask, packed_rows, scaling, is_causal)
    return attended.transpose(1, 2).contiguous(), None
