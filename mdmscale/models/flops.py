"""Floating-point operations of training, and the share of a device's peak that they make (MFU).

Counted is what the model must do on real tokens: padding and recomputation add nothing. A multiplication and
an addition are two operations; backward does twice the forward's, but for frozen weights, which need no
gradient of their own. Attention is not causal here, so that every token meets every other of its row, and the
head works at masked positions only.
"""

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from mdmscale.models.shape import ModelShape

if TYPE_CHECKING:
    import torch

# Dense bf16 peaks by the data sheets, in operations a second; the first name found in the device's counts.
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
    """Operations of forward and backward together, by what they are proportional to."""

    per_token: float  # of the rows that are computed
    per_pair: float  # of a row's token with a token of the same row, itself included
    per_masked: float

    def of(self, num_tokens: float, num_pairs: float, num_masked: float) -> float:
        """Operations of so many tokens, pairs of tokens and masked positions."""
        return self.per_token * num_tokens + self.per_pair * num_pairs + self.per_masked * num_masked


def count_flops(shape: ModelShape, is_frozen: bool = False) -> FlopCount:
    """Training FLOPs of a llama-like decoder; `is_frozen`: only adapters are trained, which are left out.

    Scores and weighted values of attention take 2 operations each, a pair and element of the query width.
    """
    passes = 2 if is_frozen else 3  # forward, the input's gradient, the weight's
    return FlopCount(
        per_token=passes * 2 * shape.layer_matrices * shape.layers,
        per_pair=3 * 4 * shape.query * shape.layers,
        per_masked=passes * 2 * shape.embedding,
    )


@cache
def peak_flops(device: "torch.device") -> float | None:
    """The device's dense bf16 peak in operations a second; None where it is not known."""
    if device.type != "cuda":
        return None
    import torch

    name = torch.cuda.get_device_name(device)
    return next((peak for known, peak in PEAKS.items() if known.lower() in name.lower()), None)
