"""Dream's decoding as published (arXiv 2508.15487, its generation_utils.py), in plain loops.

Steps lower the mask rate from t to s over linspace(1, 1e-3, steps + 1). A step commits int(n (1 - s / t)) of
the n masks left, those of the highest confidence, and the last step all of them. `origin` instead commits
each mask with probability 1 - s / t. The logits for a place are those of the place before it.
"""

import math

import numpy as np
import torch
from generation.reference_llada import LogitsOf


def dream(
    logits_of: LogitsOf,
    prompt: list[int],
    length: int,
    mask: int,
    *,
    steps: int,
    alg: str,
    top_p: float = 1.0,
    top_k: int | None = None,
) -> tuple[list[int], float]:
    """The text at temperature 0, and the smallest gap in confidence where a step stops committing."""
    text, gap = [*prompt, *[mask] * length], 1.0
    rates = torch.linspace(1, 1e-3, steps + 1)
    for step in range(steps):
        masked = [place for place, token in enumerate(text) if token == mask]
        logits = logits_of(text)
        shifted = torch.cat([logits[:1], logits[:-1]])
        chosen, found = {}, {}
        for place in masked:
            p = torch.softmax(kept(shifted[place], top_p, top_k), dim=-1)
            chosen[place], found[place] = int(p.argmax()), confidence(p, alg)
        share = 1 - rates[step + 1] / rates[step]
        count = int(torch.tensor(len(masked)) * share) if step < steps - 1 else len(masked)
        order = sorted(found, key=lambda place: -found[place])
        if 0 < count < len(order):
            gap = min(gap, found[order[count - 1]] - found[order[count]])
        for place in order[:count]:
            text[place] = chosen[place]
    return text, gap


def kept(logits: torch.Tensor, top_p: float, top_k: int | None) -> torch.Tensor:
    """The logits of one place without the tokens that top_p, and then top_k, leave out."""
    if top_p == 1 and top_k is None:
        return logits
    p, token_ids = torch.softmax(logits, dim=-1).sort(descending=True)
    logits = logits.clone()
    logits[token_ids[p.cumsum(dim=-1) - p > top_p]] = -math.inf
    return logits if top_k is None else logits.masked_fill(logits < logits.topk(top_k).values[-1], -math.inf)


def confidence(p: torch.Tensor, alg: str) -> float:
    """The confidence in a place, from its distribution."""
    if alg == "maskgit_plus":
        return float(p.max())
    if alg == "topk_margin":
        first, second = p.sort(descending=True).values[:2].tolist()
        return first - second
    assert alg == "entropy"
    return float((p * torch.log(p + 1e-10)).sum())


def origin_steps(num_masks: int, steps: int, random: np.random.Generator) -> list[int]:
    """The step at which each mask is committed by `origin`."""
    rates = np.linspace(1, 1e-3, steps + 1)
    went = [-1] * num_masks
    for step in range(steps):
        share = 1 - rates[step + 1] / rates[step] if step < steps - 1 else 1.0
        for place in range(num_masks):
            if went[place] < 0 and random.random() < share:
                went[place] = step
    return went
