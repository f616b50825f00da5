"""Samples that are left out of training (data.skip), by their numbers in the order of training.

The samples after a gap move up to fill it, so every step has a whole batch. Which sample comes n-th follows
from n and the ranges alone: it is the same on any ranks, and after any resume.
"""

from collections.abc import Iterable

from mdmscale.data.source import SampleSource
from mdmscale.diffusion.sample import Sample

Range = tuple[int, int]
"""The numbers from the first to the one before the second."""


class SkippingSource:
    """A source without the training samples in `ranges`, which are disjoint and ascending."""

    def __init__(self, source: SampleSource, ranges: tuple[Range, ...]) -> None:
        self.source, self.ranges = source, ranges
        self.num_train, self.num_held_out = source.num_train, source.num_held_out
        self.fingerprint, self.description = source.fingerprint, source.description

    def train_sample(self, index: int) -> Sample:
        return self.source.train_sample(number_of_sample(index, self.ranges))

    def held_out_sample(self, index: int) -> Sample:
        return self.source.held_out_sample(index)


def merged_ranges(ranges: Iterable[list[int]]) -> tuple[Range, ...]:
    """The same numbers as disjoint ranges in ascending order."""
    merged: list[Range] = []
    for start, stop in sorted(ranges):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(stop, merged[-1][1])
        else:
            merged.append((start, stop))
    return tuple(merged)


def number_of_sample(index: int, ranges: Iterable[Range]) -> int:
    """The number of the sample that comes after `index` others which are not in `ranges`."""
    for start, stop in ranges:
        if index < start:
            break
        index += stop - start
    return index


def ranges_before(num_samples: int, ranges: tuple[Range, ...]) -> tuple[Range, ...]:
    """Those of `ranges` that decide which the first `num_samples` samples are."""
    if not num_samples:
        return ()
    last = number_of_sample(num_samples - 1, ranges)
    return tuple(each for each in ranges if each[0] < last)
