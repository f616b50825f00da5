"""How many masks each block has, and how many of them each step commits."""

import numpy as np

from mdmscale.generation.options import Schedule

DREAM_EPS = 1e-3
"""The mask rate after Dream's last step."""


def even_split(total: int, parts: int) -> list[int]:
    """`total` in `parts` shares that differ by at most 1; the larger shares come first."""
    share, remainder = divmod(total, parts)
    return [share + (part < remainder) for part in range(parts)]


def block_sizes(num_masks: int, block_length: int | None) -> list[int]:
    """How many masks each block of a text has. Blocks have `block_length` masks; the last may have fewer."""
    if block_length is None:
        return [num_masks] if num_masks else []
    return [min(block_length, num_masks - first) for first in range(0, num_masks, block_length)]


def commits_per_step(
    sizes: list[int],
    steps: int | None,
    schedule: Schedule = "even",
    uniforms: np.ndarray | None = None,
) -> list[list[int]]:
    """How many masks each step of each block commits: [blocks][steps of the block].

    The blocks share `steps` forward passes evenly; None means one pass for each mask. Within a block:

    - even: the passes share its masks evenly. A block with fewer masks than passes takes one for each mask.
    - dream: see `dream_commits`.
    - independent: see `independent_commits`; needs `uniforms`, float64 [all masks] in [0, 1).

    Steps that commit nothing are left out: their pass would see the same text as the one before.
    """
    if not sizes:
        return []
    shares = sizes if steps is None else even_split(steps, len(sizes))
    match schedule:
        case "even":
            return [
                even_split(size, max(1, min(size, share))) for size, share in zip(sizes, shares, strict=True)
            ]
        case "dream":
            return [
                _shown(dream_commits(size, max(1, share))) for size, share in zip(sizes, shares, strict=True)
            ]
        case "independent":
            assert uniforms is not None
            parts = np.split(uniforms, np.cumsum(sizes)[:-1])
            return [
                _shown(independent_commits(part, max(1, share)))
                for part, share in zip(parts, shares, strict=True)
            ]
    raise AssertionError(schedule)


def _shown(commits: list[int]) -> list[int]:
    return [number for number in commits if number]


def mask_rates(steps: int) -> np.ndarray:
    """The mask rates before the first step and after each one, from 1 to DREAM_EPS: float32 [steps + 1].

    In fp32, as Dream computes them: rounding decides where a share of the masks is next to a whole number.
    """
    import torch

    return torch.linspace(1, DREAM_EPS, steps + 1).numpy()


def dream_commits(num_masks: int, steps: int) -> list[int]:
    """Dream's schedule: a step from mask rate t to s commits int(masks left * (1 - s / t)), the last one all.

    With one step a mask the first step commits nothing, as its share is just below 1, and the last one two.
    """
    rates = mask_rates(steps)
    left, commits = num_masks, []
    for step in range(steps - 1):
        number = int(np.float32(left) * (1 - rates[step + 1] / rates[step]))
        commits.append(number)
        left -= number
    return [*commits, left]


def independent_commits(uniforms: np.ndarray, steps: int) -> list[int]:
    """How many masks go in each step if a step from mask rate t to s takes every mask left with 1 - s / t.

    A mask is then left after a step with probability s. So one uniform says when it goes: in the first step
    after which the mask rate is below the uniform, and at the latest in the last step.
    """
    rates = mask_rates(steps)[1:-1].astype(np.float64)  # after each step but the last, falling
    steps_of_masks = (uniforms[:, None] <= rates).sum(axis=1)  # [masks]
    return np.bincount(steps_of_masks, minlength=steps).tolist()
