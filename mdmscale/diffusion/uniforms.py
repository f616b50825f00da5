"""Counter-based random draws: the only source of randomness in training.

A draw is a pure function of (seed, stream, index). So every rank, micro-batch layout and resumed run sees the
same noise, and ranks never communicate about random numbers. `index` is the global sample index, which keeps
counting over epochs. For draws that belong to a step it is the step.
"""

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """The purpose of a draw. Streams never overlap. Their numbers must not change, or runs change."""

    T = 0  # mask rate of a sample
    MASK = 1  # one uniform per position of a sample
    STRATA = 2  # permutation of the strata over a global batch, by step
    CUT = 3  # random cut of a pretraining sequence
    ORDER = 4  # keys of the epoch permutation, by epoch
    HELD_OUT = 5  # places of the held-out documents
    PROBE = 6  # masks of a P-POTS probe
    EVAL = 7  # masks of the evaluation
    SYRM = 8  # prompt tokens that SyRM makes eligible
    VARIANCE = 9  # t and masks of the variance report
    ANNEALING = 10  # which later positions attention opens, by step
    LIKELIHOOD = 11  # masks of a likelihood, by text and replicate
    BOOTSTRAP = 12  # items of a bootstrap's resamples
    GENERATION = 32  # tokens and their order in sampling, by text and step
    SCHEDULE = 33  # the step of sampling at which each mask of a text goes, by text
    INITIAL_WEIGHTS = 48  # of the stacked models of a decision
    QUESTION = 49  # a question of a decision's task, by set and number; its tables


def generator(seed: int, stream: Stream, index: int, step: int = 0) -> np.random.Generator:
    """A numpy Generator with its own part of Philox's counter space.

    The key is (seed, stream). The index is the counter's highest word and the step the word below it, so each
    step of an index has 2^128 draws.
    """
    return np.random.Generator(np.random.Philox(key=[seed, stream], counter=[0, 0, step, index]))


def uniform_t(seed: int, index: int) -> float:
    """The uniform in [0, 1) that decides the mask rate of sample `index`."""
    return float(generator(seed, Stream.T, index).random())


def mask_uniforms(seed: int, index: int, length: int, stream: Stream = Stream.MASK) -> np.ndarray:
    """One uniform in [0, 1) for each position of sample `index`, float64 [length]."""
    return generator(seed, stream, index).random(length)
