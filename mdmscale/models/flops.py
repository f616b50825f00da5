"""Floating-point operations of training, and the share of a device's peak that they make (MFU).

Counted is what the model must do on real tokens: padding and recomputation add nothing. A multiplication and
an addition are two operations; backward does twice the forward's, but for frozen weights, which need no
gradient of their own. Attention is not causal here, so that every token meets every other of its row, and the
head works at masked positions only.
"""

from dataclasses import dataclass

import torch
from transformers import PretrainedConfig

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


def count_flops(config: PretrainedConfig, is_frozen: bool = False) -> FlopCount:
    """Training FLOPs of a llama-like decoder; `is_frozen`: only adapters are trained, which are left out.

    A layer's matrices hold h (q + 2 k) + q h + 3 h m weights, with the widths h of the residual stream, q and
    k of all query and key heads, and m of the MLP; scores and weighted values take 2 q operations a pair
    each.
    """
    passes = 2 if is_frozen else 3  # forward, the input's gradient, the weight's
    hidden, head_dim = config.hidden_size, getattr(config, "head_dim", None)
    head_dim = head_dim or hidden // config.num_attention_heads
    query, key = config.num_attention_heads * head_dim, config.num_key_value_heads * head_dim
    weights = hidden * (query + 2 * key) + query * hidden + 3 * hidden * config.intermediate_size
    layers = config.num_hidden_layers
    return FlopCount(
        per_token=passes * 2 * weights * layers,
        per_pair=3 * 4 * query * layers,
        per_masked=passes * 2 * hidden * config.vocab_size,
    )


def peak_flops(device: torch.device) -> float | None:
    """The device's dense bf16 peak in operations a second; None where it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for known, peak in PEAKS.items() if known.lower() in name.lower()), None)
