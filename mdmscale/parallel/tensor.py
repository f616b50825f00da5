"""Tensor parallelism: a model's matrices are split over ranks, as in Megatron-LM (arXiv 1909.08053).

In attention and MLP the first matrices are split by output (heads, MLP channels) and the last one by input.
So each block needs one sum over ranks in forward and one in backward. Embedding and head are split by rows of
the vocabulary. Every rank holds the norms whole. The layers remain those of Hugging Face, with fewer rows or
columns. Hooks at the edges of the blocks do the sums.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel

from mdmscale.models.shape import indivisible, shape_of_config
from mdmscale.parallel.ranks import Ranks
from mdmscale.system.errors import UserError

BY_OUTPUT = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "embed_tokens", "lm_head")
BY_INPUT = ("o_proj", "down_proj")
# Norms of single heads. Every rank holds them whole, but computes only its own heads' part of their gradient.
HEAD_NORMS = ("q_norm", "k_norm")


def split_dimension(name: str) -> int | None:
    """The dimension along which the parameter of this name is split; None: every rank holds it whole."""
    layer, kind = name.split(".")[-2:]
    if layer in BY_OUTPUT:
        return 0
    return 1 if layer in BY_INPUT and kind == "weight" else None


def check_divides(config: PretrainedConfig, tensor: int, sequence: int) -> None:
    """Refuse a model whose sizes do not divide among the ranks that share it.

    Raises:
        UserError: naming each size that does not.
    """
    if problems := indivisible(shape_of_config(config), tensor, sequence):
        raise UserError(*problems)


def split_model(model: PreTrainedModel, ranks: Ranks) -> None:
    """Keep this rank's part of `model`, in place. Its head must already be a MaskedCrossEntropyHead."""
    if ranks.tp_group is None:
        return
    for name, parameter in list(model.named_parameters()):
        dimension = split_dimension(name)
        if dimension is not None:
            parameter.data = local_part(parameter.data, dimension, ranks).clone()
        elif name.split(".")[-2] in HEAD_NORMS:
            parameter.register_hook(lambda gradient: _summed(gradient.clone(), ranks.tp_group))
    model.model.embed_tokens = VocabularyParallelEmbedding.replacing(model.model.embed_tokens, ranks)
    model.lm_head.first_row = model.lm_head.weight.shape[0] * ranks.tp_rank
    model.lm_head.group = ranks.tp_group
    for block in _blocks(model):
        block.register_forward_pre_hook(_copy_inputs(ranks.tp_group), with_kwargs=True)
    for layer_name, layer in model.named_modules():
        if layer_name.rpartition(".")[2] in BY_INPUT:
            layer.register_forward_hook(_sum_output(ranks.tp_group))


def local_part(whole: torch.Tensor, dimension: int | None, ranks: Ranks) -> torch.Tensor:
    """This rank's part of a whole parameter."""
    return whole if dimension is None else whole.chunk(ranks.tp_size, dimension)[ranks.tp_rank]


def joined(part: torch.Tensor, dimension: int | None, ranks: Ranks) -> torch.Tensor:
    """The whole parameter, of which each tensor-parallel rank holds a part. All of them must call it."""
    if ranks.tp_group is None or dimension is None:
        return part
    parts = [torch.empty_like(part) for _ in range(ranks.tp_size)]
    dist.all_gather(parts, part.contiguous(), group=ranks.tp_group)
    return torch.cat(parts, dimension)


def _blocks(model: PreTrainedModel) -> Iterator[nn.Module]:
    for layer in model.model.layers:
        yield from (layer.self_attn, layer.mlp)


class VocabularyParallelEmbedding(nn.Embedding):
    """Looks up the ids whose rows this rank holds, gives zeros for the others, and sums over ranks."""

    first_row: int
    group: dist.ProcessGroup | None

    @classmethod
    def replacing(cls, embedding: nn.Embedding, ranks: Ranks) -> "VocabularyParallelEmbedding":
        """An embedding that shares the weight of `embedding`, whose rows are already split."""
        rows, width = embedding.weight.shape
        module = cls(rows, width, device="meta")
        module.weight = embedding.weight
        module.first_row, module.group = rows * ranks.tp_rank, ranks.tp_group
        return module

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        local_ids = input - self.first_row
        is_here = (local_ids >= 0) & (local_ids < self.num_embeddings)
        rows = F.embedding(torch.where(is_here, local_ids, 0), self.weight)
        return _Sum.apply(rows * is_here[..., None], self.group)


def _copy_inputs(group: Any) -> Any:
    """A hook that passes a block's input on unchanged and sums its gradient over ranks."""

    def hook(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        if args:
            return (_Copy.apply(args[0], group), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": _Copy.apply(kwargs["hidden_states"], group)}

    return hook


def _sum_output(group: Any) -> Any:
    return lambda module, args, output: _Sum.apply(output, group)


def _summed(tensor: torch.Tensor, group: Any) -> torch.Tensor:
    dist.all_reduce(tensor, group=group)
    return tensor


class _Copy(torch.autograd.Function):
    """Identity forward, sum over ranks backward."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, group: Any) -> torch.Tensor:
        ctx.group = group
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        return _summed(gradient.contiguous().clone(), ctx.group), None


class _Sum(torch.autograd.Function):
    """Sum over ranks forward, identity backward."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, group: Any) -> torch.Tensor:
        return _summed(tensor.contiguous().clone(), group)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        return gradient, None
