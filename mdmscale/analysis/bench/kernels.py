"""Head kernels of other libraries as loss paths. They need a CUDA device and their package.

Both return losses by position, and so the same loss and gradient. Neither returns squared gradient norms,
which P-POTS and the metrics of a step get from this project's head without another pass.
"""

from importlib.util import find_spec
from typing import Any

import torch

from mdmscale.analysis.bench.paths import LossPath, single
from mdmscale.data.batch import Batch
from mdmscale.models.mdm import MaskedDiffusionModel


def cut_cross_entropy(model: MaskedDiffusionModel, batches: list[Batch]) -> torch.Tensor:
    """Logits exist only in the memory of the kernel (Wijmans et al., arXiv 2411.09009)."""
    from cut_cross_entropy import linear_cross_entropy

    return _by_kernel(linear_cross_entropy, model, batches)


def liger(model: MaskedDiffusionModel, batches: list[Batch]) -> torch.Tensor:
    """Logits in chunks, recomputed in backward because losses are by position (arXiv 2410.10989)."""
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    return _by_kernel(liger_fused_linear_cross_entropy, model, batches)


def _by_kernel(kernel: Any, model: MaskedDiffusionModel, batches: list[Batch]) -> torch.Tensor:
    """The loss by a kernel that takes states [masked, hidden], the head's weight and targets [masked]."""
    (batch,) = batches
    decoder = model.backbone.model(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
    )
    states = decoder.last_hidden_state.flatten(0, 1)[batch.positions]
    losses = kernel(states, model.backbone.lm_head.weight, batch.targets, reduction="none")
    return (losses * batch.weights).sum()


KERNELS = (
    (
        LossPath("cce", "cut-cross-entropy at masked positions", cut_cross_entropy, single),
        "cut_cross_entropy",
    ),
    (LossPath("liger", "liger-kernel at masked positions", liger, single), "liger_kernel"),
)


def installed(device: torch.device) -> list[LossPath]:
    """The paths that can run on this device."""
    return [path for path, module in KERNELS if device.type == "cuda" and find_spec(module)]
