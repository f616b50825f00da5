"""The loss of a stack's rows: each masked position's weighted cross-entropy.

Legend: lanes; samples; rows = forward rows of a sample; length = tokens of a row.
"""

import torch
from torch.nn import functional as F

from mdmscale.analysis.decision.noised_steps import StepRows
from mdmscale.analysis.decision.stacked_model import StackedModel


def cross_entropies(
    model: StackedModel, targets: torch.Tensor, masks: torch.Tensor, first: int = 0, is_causal: bool = False
) -> torch.Tensor:
    """Cross-entropies of the positions from `first` on, in nats: float32 [lanes, rows, length - first].

    Args:
        targets: int64 [lanes, rows, length], clean tokens.
        masks: bool, of the same shape: what the model does not see. With `is_causal` it sees everything
            before a position, from which that is predicted; `first` must be at least 1.
    """
    if is_causal:
        logits = model.logits(targets[..., :-1], first - 1, is_causal=True)
    else:
        logits = model.logits(targets.masked_fill(masks, model.shape.mask_token_id), first)
    losses = F.cross_entropy(logits.flatten(0, 2), targets[..., first:].flatten(), reduction="none")
    return losses.view(targets[..., first:].shape)


def sample_losses(
    model: StackedModel, rows: StepRows, num_samples: int, first: int, is_causal: bool
) -> torch.Tensor:
    """The loss of each sample: the sum over its rows. float32 [lanes, samples].

    Args:
        first: no position before it is ever masked.
    """
    losses = cross_entropies(model, rows.targets, rows.masks, first, is_causal)
    return (losses * rows.weights[..., first:]).unflatten(1, (num_samples, -1)).sum(dim=(2, 3))
