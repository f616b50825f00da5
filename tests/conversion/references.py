"""Forward passes of LLaDA and Dream on their own weights, written from the formulas alone.

Legend: rows = batch, length = tokens, heads, groups = key/value heads, width of a head = head_dim.
"""

from typing import Any

import torch
from torch.nn import functional as F

Weights = dict[str, torch.Tensor]


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def rotate(x: torch.Tensor, theta: float) -> torch.Tensor:
    """Rotary embedding of x [rows, length, heads, head_dim]. A pair has one element in each half."""
    length, half = x.shape[1], x.shape[-1] // 2
    frequencies = theta ** (-torch.arange(half, dtype=torch.float32) / half)
    angles = torch.arange(length, dtype=torch.float32)[:, None] * frequencies  # [length, half]
    cos, sin = angles.cos()[None, :, None], angles.sin()[None, :, None]
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, num_heads: int, theta: float) -> torch.Tensor:
    """Full attention: q is [rows, length, width]; k and v may have fewer heads."""
    rows, length, width = q.shape
    head_dim = width // num_heads
    q, k, v = (x.view(rows, length, -1, head_dim) for x in (q, k, v))
    q, k = rotate(q, theta), rotate(k, theta)
    k, v = (x.repeat_interleave(num_heads // x.shape[2], dim=2) for x in (k, v))
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / head_dim**0.5
    return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v).reshape(rows, length, width)


def llada_logits(config: dict[str, Any], weights: Weights, ids: torch.Tensor) -> torch.Tensor:
    """The logits [rows, length, vocab] of LLaDA, for either kind of block."""
    eps, width = config["rms_norm_eps"], config["d_model"]
    groups = width // config["n_heads"] * config["n_kv_heads"]
    x = weights["model.transformer.wte.weight"][ids]
    for layer in range(config["n_layers"]):
        w = {
            name.removeprefix(f"model.transformer.blocks.{layer}.").removesuffix(".weight"): tensor
            for name, tensor in weights.items()
            if name.startswith(f"model.transformer.blocks.{layer}.")
        }
        h = rms_norm(x, w["attn_norm"], eps)
        if config["block_type"] == "sequential":
            q, k, v = (h @ w["att_proj"].T).split([width, groups, groups], dim=-1)
        else:
            q, k, v = (h @ w[name].T for name in ("q_proj", "k_proj", "v_proj"))
        x = x + attend(q, k, v, config["n_heads"], config["rope_theta"]) @ w["attn_out"].T
        h = rms_norm(x, w["ff_norm"], eps)
        if config["block_type"] == "sequential":
            linear, gate = (h @ w["ff_proj"].T).chunk(2, dim=-1)
        else:
            linear, gate = h @ w["up_proj"].T, h @ w["ff_proj"].T
        x = x + (F.silu(gate) * linear) @ w["ff_out"].T
    x = rms_norm(x, weights["model.transformer.ln_f.weight"], eps)
    return x @ weights["model.transformer.ff_out.weight"].T


def dream_logits(config: dict[str, Any], weights: Weights, ids: torch.Tensor) -> torch.Tensor:
    """The logits [rows, length, vocab] for each position's own token, from the position before it."""
    eps = config["rms_norm_eps"]
    x = weights["model.embed_tokens.weight"][ids]
    for layer in range(config["num_hidden_layers"]):
        w = {
            name.removeprefix(f"model.layers.{layer}."): tensor
            for name, tensor in weights.items()
            if name.startswith(f"model.layers.{layer}.")
        }
        h = rms_norm(x, w["input_layernorm.weight"], eps)
        q, k, v = (
            F.linear(h, w[f"self_attn.{name}_proj.weight"], w[f"self_attn.{name}_proj.bias"])
            for name in "qkv"
        )
        attended = attend(q, k, v, config["num_attention_heads"], config["rope_theta"])
        x = x + attended @ w["self_attn.o_proj.weight"].T
        h = rms_norm(x, w["post_attention_layernorm.weight"], eps)
        gated = F.silu(h @ w["mlp.gate_proj.weight"].T) * (h @ w["mlp.up_proj.weight"].T)
        x = x + gated @ w["mlp.down_proj.weight"].T
    logits = rms_norm(x, weights["model.norm.weight"], eps) @ weights["lm_head.weight"].T
    return torch.cat([logits[:, :1], logits[:, :-1]], dim=1)
