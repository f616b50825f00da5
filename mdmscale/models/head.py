"""The output head: cross-entropy at masked positions only, in chunks. Forward computes the gradients too.

There is never a [rows, length, vocab] tensor. The largest temporary is one [chunk, vocab] buffer, in which
the logits become their gradient.

Legend: masked = number of masked positions in the micro-batch; hidden = hidden_size; vocab = rows of the
head's weight (this rank's rows under tensor parallelism).
"""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mdmscale.config.section import HeadKind
from mdmscale.models.compiling import can_compile
from mdmscale.models.shape import head_chunk
from mdmscale.models.softmax import Softmax, chunked, fused


class HeadOutput(NamedTuple):
    """What the head returns.

    loss: scalar, sum of weights * losses; the only part with a gradient.
    losses: float32 [masked], cross-entropies in nats.
    squared_norms: float32 [masked], of the gradient of each cross-entropy with respect to its logits.
    """

    loss: torch.Tensor
    losses: torch.Tensor
    squared_norms: torch.Tensor


class MaskedCrossEntropyHead(nn.Linear):
    """A vocabulary projection that also computes the loss. Without targets it is the nn.Linear it replaces.

    The loss is part of the module's forward, because ZeRO-3 gathers a weight only for its module's forward.
    """

    chunk_size: int | None
    kind: HeadKind
    first_row: int = 0  # the first row of the vocabulary that this rank holds, under tensor parallelism
    group: dist.ProcessGroup | None = None  # the ranks that share the vocabulary

    @classmethod
    def replacing(
        cls, linear: nn.Linear, chunk_size: int | None, kind: HeadKind = "auto"
    ) -> "MaskedCrossEntropyHead":
        """A head that shares the weight of `linear`, and so stays tied to the input embedding if `linear` is.

        Args:
            linear: the projection to replace.
            chunk_size: masked positions projected at a time; None: as many as shape.head_chunk says.
            kind: how the logits of a chunk become their gradient, see `is_fused`.

        Raises:
            ValueError: where `linear` has a bias.
        """
        if linear.bias is not None:
            raise ValueError("the head has a bias; only heads without one are supported")
        head = cls(linear.in_features, linear.out_features, bias=False, device="meta")
        head.weight = linear.weight
        head.chunk_size = chunk_size
        head.kind = kind
        return head

    def forward(  # type: ignore[override]
        self, hidden: torch.Tensor, targets: torch.Tensor | None = None, weights: torch.Tensor | None = None
    ) -> Any:
        """The logits of hidden [..., hidden]; with targets and weights [masked], the HeadOutput instead."""
        if targets is None:
            return super().forward(hidden)
        needs_gradient = torch.is_grad_enabled()
        return HeadOutput(
            *_ChunkedCrossEntropy.apply(
                hidden,
                self.weight,
                targets - self.first_row,
                weights,
                self.chunk_size or head_chunk(len(self.weight)),
                fused if is_fused(self.kind, hidden.device) else chunked,
                needs_gradient,
                self.group,
            )
        )


def is_fused(kind: HeadKind, device: torch.device) -> bool:
    """Whether the softmax is compiled. `auto` compiles it on a GPU where torch.compile finds its tools."""
    return kind == "fused" or (kind == "auto" and device.type == "cuda" and can_compile(device))


class _ChunkedCrossEntropy(torch.autograd.Function):
    """sum_i weights_i CE_i. Forward computes both gradients chunk by chunk, so backward only scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        weights: torch.Tensor,
        chunk_size: int,
        softmax: Softmax,
        needs_gradient: bool,
        group: dist.ProcessGroup | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        losses = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        squared_norms = torch.empty_like(losses)
        wants_hidden, wants_weight = (needs_gradient and needed for needed in ctx.needs_input_grad[:2])
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight: torch.Tensor | None = None
        # One buffer for all chunks: on the CPU, touching new memory takes a third of the time of the product.
        # It is flat, because torch.compile would compile a whole [chunk, vocab] and a part of one separately.
        buffer = hidden.new_empty(min(chunk_size, len(targets)) * len(weight))

        for start in range(0, len(targets), chunk_size):
            at = slice(start, start + chunk_size)
            logits = buffer[: len(targets[at]) * len(weight)].view(-1, len(weight))
            torch.mm(hidden[at], weight.T, out=logits)
            losses[at], squared_norms[at], factor = softmax(logits, targets[at], weights[at], group)
            gradient, factor = logits, factor[:, None]
            if grad_hidden is not None:
                grad_hidden[at] = (gradient @ weight).mul_(factor)
            if wants_weight:
                grad_weight = _add_product(grad_weight, gradient.T, (hidden[at] * factor).to(hidden.dtype))
        if group is not None:
            dist.all_reduce(squared_norms, group=group)
            if grad_hidden is not None:
                dist.all_reduce(grad_hidden, group=group)

        if wants_weight:
            grad_weight = torch.zeros_like(weight) if grad_weight is None else grad_weight.to(weight.dtype)
        ctx.gradients = (grad_hidden, grad_weight)
        ctx.mark_non_differentiable(losses, squared_norms)
        return (weights * losses).sum(), losses, squared_norms

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("the head scales its gradients in place: a second backward is not possible")
        gradients, ctx.gradients = ctx.gradients, None
        scaled = [None if each is None else each.mul_(grad_loss.to(each.dtype)) for each in gradients]
        return (*scaled, None, None, None, None, None, None)


def _add_product(total: torch.Tensor | None, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """total + left @ right in fp32, in place: a bf16 sum would lose the small parts of late chunks."""
    if total is None:
        return (left @ right).float()
    if left.dtype == total.dtype:
        return torch.addmm(total, left, right, out=total)
    return total.add_(left @ right)


def naive_masked_cross_entropy(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor
) -> HeadOutput:
    """The same by plain autograd, all at once: the reference that tests compare the chunked head with."""
    logits = F.linear(hidden, weight).float()
    losses = F.cross_entropy(logits, targets, reduction="none")
    onehot = F.one_hot(targets, logits.shape[-1])
    squared_norms = (logits.softmax(-1) - onehot).square().sum(-1)
    return HeadOutput((weights * losses).sum(), losses.detach(), squared_norms.detach())
