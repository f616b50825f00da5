"""Which masks make a block, and how many of a block's masks each step commits."""


def even_split(total: int, parts: int) -> list[int]:
    """`total` in `parts` shares that differ by at most 1, the larger ones first."""
    share, remainder = divmod(total, parts)
    return [share + (part < remainder) for part in range(parts)]


def block_sizes(num_masks: int, block_length: int | None) -> list[int]:
    """The masks of a text, in order, in blocks of `block_length`; the last may be shorter."""
    if block_length is None:
        return [num_masks] if num_masks else []
    return [min(block_length, num_masks - first) for first in range(0, num_masks, block_length)]


def commits_per_step(sizes: list[int], steps: int | None) -> list[list[int]]:
    """How many masks each step of each block commits: [blocks][steps of the block].

    `steps` passes are shared evenly among the blocks and, in a block, its masks among its passes. A block
    with fewer masks than passes, as in a text with fewer masks than `steps`, takes one pass a mask. None
    means one mask a pass.
    """
    if steps is None:
        return [[1] * size for size in sizes]
    shares = even_split(steps, len(sizes)) if sizes else []
    return [even_split(size, max(1, min(size, share))) for size, share in zip(sizes, shares, strict=True)]
