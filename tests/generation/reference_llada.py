"""LLaDA's and Fast-dLLM's decoding as published, in plain loops: the reference for the denoising loop.

LLaDA (arXiv 2502.09992, its generate.py at temperature 0): the response is cut into blocks, which share the
steps evenly. A step predicts all masks, keeps the likeliest token of each, and commits those of the block
whose probability, from a softmax in float64, is highest. Fast-dLLM (arXiv 2505.22618) commits all tokens of a
block above a threshold, or the largest n of them with (n + 1)(1 - c_n) < factor, and at least one.
"""

from collections.abc import Callable

import torch

LogitsOf = Callable[[list[int]], torch.Tensor]
"""The logits of a text, float64 [length, vocab]; -inf for tokens that stand for no text, such as the mask."""


def llada(
    logits_of: LogitsOf,
    prompt: list[int],
    length: int,
    mask: int,
    *,
    steps: int,
    block_length: int,
    decimals: int | None = None,
) -> tuple[list[int], float]:
    """The text, and the smallest gap in confidence where a step stops committing.

    `decimals` rounds the probabilities, and commits the leftmost of equals, as mdmscale once did.
    """
    text, gap = [*prompt, *[mask] * length], 1.0
    num_blocks = length // block_length
    steps_per_block = steps // num_blocks
    for block in range(num_blocks):
        end = len(prompt) + (block + 1) * block_length
        counts = transfers(block_length, steps_per_block)
        for count in counts:
            chosen, found = predictions(logits_of(text), text[:end], mask)
            if decimals is not None:
                found = {place: round(value, decimals) for place, value in found.items()}
            order = sorted(found, key=lambda place: -found[place])  # stable: the leftmost of equals first
            if 0 < count < len(order):
                gap = min(gap, found[order[count - 1]] - found[order[count]])
            for place in order[:count]:
                text[place] = chosen[place]
    return text, gap


def transfers(num_masks: int, steps: int) -> list[int]:
    """LLaDA's get_num_transfer_tokens: equal shares, the remainder in the first steps."""
    return [num_masks // steps + (step < num_masks % steps) for step in range(steps)]


def predictions(logits: torch.Tensor, text: list[int], mask: int) -> tuple[dict[int, int], dict[int, float]]:
    """The likeliest token of each mask, and its probability, by place."""
    chosen, probabilities = {}, {}
    for place, token in enumerate(text):
        if token == mask:
            p = torch.softmax(logits[place], dim=-1)
            chosen[place] = int(p.argmax())
            probabilities[place] = float(p.max())
    return chosen, probabilities


def fast_dllm(
    logits_of: LogitsOf,
    prompt: list[int],
    length: int,
    mask: int,
    *,
    block_length: int,
    threshold: float | None = None,
    factor: float | None = None,
) -> tuple[list[int], int]:
    """The text, and the number of passes."""
    text, num_passes = [*prompt, *[mask] * length], 0
    for block in range(length // block_length):
        end = len(prompt) + (block + 1) * block_length
        while mask in text[:end]:
            chosen, found = predictions(logits_of(text), text[:end], mask)
            num_passes += 1
            order = sorted(found, key=lambda place: -found[place])
            if threshold is not None:
                count = sum(value >= threshold for value in found.values())
            else:
                assert factor is not None
                count = 0
                for n in range(1, len(order) + 1):
                    if (n + 1) * (1 - found[order[n - 1]]) < factor:
                        count = n
            for place in order[: max(1, count)]:
                text[place] = chosen[place]
    return text, num_passes
