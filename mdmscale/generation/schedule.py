"""How many masks each block has, and how many of them each step commits."""


def even_split(total: int, parts: int) -> list[int]:
    """`total` in `parts` shares that differ by at most 1; the larger shares come first."""
    share, remainder = divmod(total, parts)
    return [share + (part < remainder) for part in range(parts)]


def block_sizes(num_masks: int, block_length: int | None) -> list[int]:
    """How many masks each block of a text has. Blocks have `block_length` masks; the last may have fewer."""
    if block_length is None:
        return [num_masks] if num_masks else []
    return [min(block_length, num_masks - first) for first in range(0, num_masks, block_length)]


def commits_per_step(sizes: list[int], steps: int | None) -> list[list[int]]:
    """How many masks each step of each block commits: [blocks][steps of the block].

    The blocks share `steps` forward passes evenly, and within a block the passes share its masks evenly. A
    block with fewer masks than passes takes one pass for each mask. None means one pass for each mask.
    """
    if steps is None:
        return [[1] * size for size in sizes]
    shares = even_split(steps, len(sizes)) if sizes else []
    return [even_split(size, max(1, min(size, share))) for size, share in zip(sizes, shares, strict=True)]
