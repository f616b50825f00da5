"""Which documents (SFT: samples) are held out: evenly spread, the same for every run."""

import math

import numpy as np

from mdmscale.diffusion.uniforms import Stream, generator
from mdmscale.system.errors import UserError

# Not run.seed: runs with different seeds are compared on the same held-out data.
_SPLIT_SEED = 0
# Each costs a look into an index when the data are opened.
MOST_HELD_OUT = 10**6


def held_out_places(count: int, share: float, what: str) -> np.ndarray:
    """The held-out ones of `count` items, int64 [ceil(share * count)], ascending; a million at most.

    One is drawn from each of as many equal blocks; at least one is held out (unless `share` is 0), and never
    all. `what` names the items in the error.
    """
    if share == 0:
        return np.empty(0, dtype=np.int64)
    if count < 2:
        raise UserError(
            f"data.held_out = {share}: {count} {what} cannot be split; set it to 0 or give more {what}"
        )
    # the subtrahend keeps products such as 0.07 * 100 = 7.000000000000001 from rounding up
    num_held_out = min(max(1, math.ceil(share * count - 1e-9)), count - 1, MOST_HELD_OUT)
    edges = np.arange(num_held_out + 1, dtype=np.int64) * count // num_held_out
    places = generator(_SPLIT_SEED, Stream.HELD_OUT, 0).random(num_held_out)
    return edges[:-1] + (places * np.diff(edges)).astype(np.int64)


def kept_before(held_out: np.ndarray) -> np.ndarray:
    """How many items that are not held out come before each of `held_out` (ascending): int64 [held out]."""
    return held_out - np.arange(len(held_out))


def kept_place(kept_before: np.ndarray, number: int) -> int:
    """The place of item `number` among those that are not held out, in O(log(held out))."""
    return number + int(np.searchsorted(kept_before, number, side="right"))
