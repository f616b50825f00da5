"""Floating-point operations (FLOPs) of training, and the share of a device's peak that they reach (MFU).

Only what the model must compute for real tokens counts: padding and recomputation add nothing. A
multiplication and an addition are two operations. Backward takes twice the operations of forward, except for
frozen weights, which need no gradient of their own. Attention is bidirectional, so every token attends to
every token of its row. The head works at masked positions only.
"""

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from mdmscale.models.shape import ModelShape

if TYPE_CHECKING:
    import torch

# Dense bf16 peaks from the data sheets, in operations per second. The first key that is part of the device's
# name counts.
PEAKS = {
    "B200": 2250e12,
    "GH200": 989e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H800": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
}


@dataclass(frozen=True)
class FlopCount:
    """Operations of forward and backward together, split by what they are proportional to."""

    per_token: float  # of the rows that are computed
    per_pair: float  # query-key pair: a token with each token of its row, itself included
    per_masked: float  # masked position

    def of(self, num_tokens: float, num_pairs: float, num_masked: float) -> float:
        """Operations for this many tokens, query-key pairs and masked positions."""
        return self.per_token * num_tokens + self.per_pair * num_pairs + self.per_masked * num_masked


def count_flops(shape: ModelShape, is_frozen: bool = False) -> FlopCount:
    """Training FLOPs of a llama-like decoder.

    With `is_frozen` only LoRA adapters are trained. Their own operations are not counted. In attention the
    scores and the weighted sum of the values take 2 operations each for every query-key pair and element of
    the query width.
    """
    passes = 2 if is_frozen else 3  # forward, gradient of the input, gradient of the weight
    return FlopCount(
        per_token=passes * 2 * shape.layer_matrices * shape.layers,
        per_pair=3 * 4 * shape.query * shape.layers,
        per_masked=passes * 2 * shape.embedding,
    )


@cache
def peak_flops(device: "torch.device") -> float | None:
    """The device's dense bf16 peak in operations per second; None for a device that PEAKS does not name."""
    if device.type != "cuda":
        return None
    import torch

    name = torch.cuda.get_device_name(device)
    return next((peak for known, peak in PEAKS.items() if known.lower() in name.lower()), None)
