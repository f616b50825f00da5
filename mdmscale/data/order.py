"""The order of samples: each epoch is a keyed permutation of the sequences, computed and never stored."""

from functools import lru_cache

import numpy as np

from mdmscale.diffusion.uniforms import Stream, generator

_ROUNDS = 8
_WORD = (1 << 64) - 1


def sequence_of_sample(sample: int, num_sequences: int, seed: int) -> int:
    """The sequence of global sample `sample`. Each epoch visits every sequence once, in its own order."""
    epoch, position = divmod(sample, num_sequences)
    return permute(position, num_sequences, seed, epoch)


def permute(position: int, size: int, seed: int, epoch: int) -> int:
    """The image of `position` under the permutation of range(size) with key (seed, epoch), in O(1) memory.

    A balanced Feistel network permutes range(2**b), where b is the smallest even number with 2**b >= size. It
    is applied until the result is below `size` (fewer than 4 times on average), which makes the whole a
    permutation of range(size).
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
    """The keys of an epoch, cached because to draw them takes longer than the permutation itself."""
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
