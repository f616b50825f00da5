"""Ways to compute the same loss: how other stacks do it, in plain code, and how this one does.

A path turns a model and its batches into a loss. All paths have the same loss and gradient.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from mdmscale.analysis.bench.work import Sizes, make_batch, make_samples
from mdmscale.config.section import HeadKind
from mdmscale.data.batch import Batch
from mdmscale.models.mdm import MaskedDiffusionModel
from mdmscale.models.packed_attention import attend_in_rows

Loss = Callable[[MaskedDiffusionModel, list[Batch]], torch.Tensor]


@dataclass(frozen=True)
class LossPath:
    """One way to compute the loss: its name and description, its loss, and its batches."""

    name: str
    description: str
    loss: Loss
    batches: Callable[[Sizes], list[Batch]]
    ours: bool = False  # how mdmscale computes it
    packs: bool = False
    compiles: bool = False  # compiles the layers
    head: HeadKind = "auto"  # see head.is_fused


def full_logits(model: MaskedDiffusionModel, batches: list[Batch]) -> torch.Tensor:
    """Cross-entropies of all positions, then those of masked ones selected, as in dllm's trainer."""
    total = torch.zeros((), device=batches[0].weights.device)
    for batch in batches:
        logits = _all_logits(model, batch)  # [rows, length, vocab]
        clean = batch.input_ids.flatten().index_put((batch.positions,), batch.targets)
        clean = clean.view_as(batch.input_ids)
        losses = F.cross_entropy(logits.float().transpose(1, 2), clean, reduction="none").flatten()
        total = total + (losses[batch.positions] * batch.weights).sum()
    return total


def index_after_head(model: MaskedDiffusionModel, batches: list[Batch]) -> torch.Tensor:
    """Logits of all positions, then cross-entropies of masked ones, as in LLaDA's guidelines."""
    total = torch.zeros((), device=batches[0].weights.device)
    for batch in batches:
        logits = _all_logits(model, batch).flatten(0, 1)[batch.positions]  # [masked, vocab]
        losses = F.cross_entropy(logits.float(), batch.targets, reduction="none")
        total = total + (losses * batch.weights).sum()
    return total


def masked_only(model: MaskedDiffusionModel, batches: list[Batch]) -> torch.Tensor:
    """As in training: the head runs only at masked positions, and computes its gradient in forward."""
    (batch,) = batches
    return model(**batch.model_inputs).loss


def _all_logits(model: MaskedDiffusionModel, batch: Batch) -> torch.Tensor:
    return model.backbone(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits


def single(sizes: Sizes) -> list[Batch]:
    """One row a sample."""
    return [make_batch(sizes, make_samples(sizes, "bernoulli"))]


def mirror_rows(sizes: Sizes) -> list[Batch]:
    """MIRROR's two rows a sample, in one forward."""
    return [make_batch(sizes, make_samples(sizes, "mirror"))]


def mirror_rows_apart(sizes: Sizes) -> list[Batch]:
    """MIRROR's two rows a sample, in a forward each."""
    samples = make_samples(sizes, "mirror")
    return [make_batch(sizes, [sample.row(number) for sample in samples]) for number in range(2)]


def padded(sizes: Sizes) -> list[Batch]:
    """Samples of different lengths, padded to the longest."""
    return [make_batch(sizes, make_samples(sizes, "bernoulli", are_spread=True))]


def packed(sizes: Sizes) -> list[Batch]:
    """Samples of different lengths, packed end to end."""
    return [make_batch(sizes, make_samples(sizes, "bernoulli", are_spread=True), packs=True)]


LOSS_PATHS = (
    LossPath("full", "logits and losses of all positions", full_logits, single),
    LossPath("indexed", "logits of all positions, losses of masked ones", index_after_head, single),
    LossPath("masked", "the head at masked positions", masked_only, single, ours=True),
    LossPath("chunked", "masked, softmax in operations", masked_only, single, ours=True, head="chunked"),
    LossPath("fused", "masked, softmax in two kernels", masked_only, single, ours=True, head="fused"),
    LossPath("compiled", "masked, its layers compiled", masked_only, single, ours=True, compiles=True),
    LossPath(
        "pair-full", "MIRROR as two forwards before backward, all losses", full_logits, mirror_rows_apart
    ),
    LossPath(
        "pair-passes", "MIRROR as two forwards before backward, indexed", index_after_head, mirror_rows_apart
    ),
    LossPath("pair", "MIRROR's rows in one forward", masked_only, mirror_rows, ours=True),
    LossPath("padded-indexed", "lengths spread 10:1, padded, indexed", index_after_head, padded),
    LossPath("padded", "lengths spread 10:1, padded, masked", masked_only, padded, ours=True),
    LossPath("packed", "lengths spread 10:1, packed, masked", masked_only, packed, ours=True, packs=True),
)

# The questions that the paths answer: (slower path, faster path, question).
COMPARISONS = (
    ("full", "masked", "masked positions only, against all positions' losses"),
    ("indexed", "masked", "masked positions only, against indexing after the head"),
    ("chunked", "fused", "the head's softmax in two kernels, against operations"),
    ("masked", "compiled", "compiled layers, against eager ones"),
    ("pair", "masked", "cost of MIRROR's second row"),
    ("pair-full", "pair", "MIRROR in one forward, against two passes with all losses"),
    ("pair-passes", "pair", "MIRROR in one forward, against two passes, indexed"),
    ("padded-indexed", "packed", "packed, against padded and indexed after the head"),
    ("padded", "packed", "packed, against padded"),
    ("cce", "masked", "masked positions only, against cut-cross-entropy"),
    ("liger", "masked", "masked positions only, against liger-kernel"),
)


def set_attention(model: MaskedDiffusionModel, path: LossPath) -> None:
    """Give the model the attention that the path needs."""
    if path.packs:
        attend_in_rows(model.backbone)
    else:
        model.backbone.config._attn_implementation = "sdpa"
