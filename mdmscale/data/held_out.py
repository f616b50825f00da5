"""Which documents (in SFT, samples) are held out. They are evenly spread and the same in every run."""

import math

import numpy as np

from mdmscale.diffusion.uniforms import Stream, generator
from mdmscale.system.errors import UserError

# Not run.seed, so that runs with different seeds are compared on the same held-out data.
_SPLIT_SEED = 0
# Each takes a look-up in an index when the data are opened.
MOST_HELD_OUT = 10**6


def held_out_indices(count: int, share: float, what: str) -> np.ndarray:
    """Which of `count` items are held out: int64 [ceil(share * count)], ascending, a million at most.

    The items are divided into as many equal blocks, and one is drawn from each. At least one item is held out
    (unless `share` is 0), and never all of them. `what` names the items in the error.

    Raises:
        UserError: where there are too few items to split.
    """
    if share == 0:
        return np.empty(0, dtype=np.int64)
    if count < 2:
        raise UserError(
            f"data.held_out = {share}: {count} {what} cannot be split; set it to 0 or give more {what}"
        )
    # - 1e-9, so that products such as 0.07 * 100 = 7.000000000000001 are not rounded up
    num_held_out = min(max(1, math.ceil(share * count - 1e-9)), count - 1, MOST_HELD_OUT)
    edges = np.arange(num_held_out + 1, dtype=np.int64) * count // num_held_out
    places = generator(_SPLIT_SEED, Stream.HELD_OUT, 0).random(num_held_out)
    return edges[:-1] + (places * np.diff(edges)).astype(np.int64)


def kept_before(held_out: np.ndarray) -> np.ndarray:
    """How many kept items come before each item of `held_out` (ascending): int64 [held out]."""
    return held_out - np.arange(len(held_out))


def kept_index(kept_before: np.ndarray, number: int) -> int:
    """Where kept item `number` is among all items, in O(log(held out)). Kept items are those not held out."""
    return number + int(np.searchsorted(kept_before, number, side="right"))
