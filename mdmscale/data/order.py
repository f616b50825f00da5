"""Which sequence sample n is: a keyed permutation of each epoch that is computed, never stored."""

from functools import lru_cache

import numpy as np

from mdmscale.diffusion.uniforms import Stream, generator

_ROUNDS = 8
_WORD = (1 << 64) - 1


def sequence_of_sample(sample: int, num_sequences: int, seed: int) -> int:
    """The sequence that global sample `sample` is: each epoch visits each sequence once, in its own order."""
    epoch, position = divmod(sample, num_sequences)
    return permute(position, num_sequences, seed, epoch)


def permute(position: int, size: int, seed: int, epoch: int) -> int:
    """Image of `position` under the permutation of range(size) keyed by (seed, epoch), in O(1) memory.

    A balanced Feistel network permutes the smallest range of an even number of bits that holds `size`;
    walking its cycle until it comes back below `size` (fewer than 4 steps expected) restricts it to
    range(size).
    """
    assert 0 <= position < size
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    keys = _round_keys(seed, epoch)
    position = _feistel(position, half, keys)
    while position >= size:
        position = _feistel(position, half, keys)
    return position


@lru_cache(maxsize=4)
def _round_keys(seed: int, epoch: int) -> tuple[int, ...]:
    """An epoch's keys; drawing them takes longer than the permutation itself."""
    draws = generator(seed, Stream.ORDER, epoch)
    return tuple(draws.integers(0, _WORD, _ROUNDS, dtype=np.uint64, endpoint=True).tolist())


def _feistel(value: int, half: int, keys: tuple[int, ...]) -> int:
    mask = (1 << half) - 1
    left, right = value >> half, value & mask
    for round_key in keys:
        left, right = right, left ^ (_mix(right ^ round_key) & mask)
    return left << half | right


def _mix(word: int) -> int:
    """splitmix64's finaliser: every input bit reaches every output bit."""
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 & _WORD
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB & _WORD
    return word ^ (word >> 31)
