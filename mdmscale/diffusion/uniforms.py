"""Counter-based random draws: the only source of randomness in training.

A draw is a pure function of (seed, stream, index), so every rank, micro-batch layout and resumed run sees the
same noise, and no rank ever asks another for a random number. `index` is the global sample index, which runs
on over epochs, or the step where a draw belongs to a step.
"""

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What a draw is for. Streams never overlap; their numbers are part of what makes runs reproducible."""

    T = 0  # mask rate of a sample
    MASK = 1  # one uniform a position of a sample
    STRATA = 2  # permutation of the strata over a global batch, by step
    CUT = 3  # random cut of a pretraining sequence
    ORDER = 4  # keys of the epoch permutation, by epoch
    HELD_OUT = 5  # places of the held-out documents
    PROBE = 6  # masks of a P-POTS probe
    EVAL = 7  # masks of the evaluation
    SYRM = 8  # prompt tokens that SyRM makes eligible
    VARIANCE = 9  # t and masks of the variance report
    ANNEALING = 10  # which later positions attention opens, by step
    GENERATION = 32  # tokens and their order in sampling, by text and step


def generator(seed: int, stream: Stream, index: int, step: int = 0) -> np.random.Generator:
    """A numpy Generator at its own place of Philox's counter space.

    The key is (seed, stream), the index the counter's highest word and the step the one below it, so that
    2^128 draws lie between two steps of an index.
    """
    return np.random.Generator(np.random.Philox(key=[seed, stream], counter=[0, 0, step, index]))


def uniform_t(seed: int, index: int) -> float:
    """The uniform in [0, 1) that decides the mask rate of sample `index`."""
    return float(generator(seed, Stream.T, index).random())


def mask_uniforms(seed: int, index: int, length: int, stream: Stream = Stream.MASK) -> np.ndarray:
    """One uniform in [0, 1) a position of sample `index`. Returns float64 [length]."""
    return generator(seed, stream, index).random(length)
