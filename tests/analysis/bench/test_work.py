"""The sizes and samples of a benchmark."""

from dataclasses import replace

import pytest

from mdmscale.analysis.bench.options import check_sizes
from mdmscale.analysis.bench.work import Sizes, make_samples


def test_lengths_are_spread_ten_to_one(sizes: Sizes) -> None:
    lengths = [len(sample.token_ids) for sample in make_samples(sizes, "bernoulli", are_spread=True)]
    assert (min(lengths), max(lengths)) == (3, 32)


@pytest.mark.parametrize(("hidden", "heads"), [(256, 4), (512, 8), (224, 2), (16, 1), (70, 1)])
def test_heads_follow_the_width(sizes: Sizes, hidden: int, heads: int) -> None:
    free = replace(sizes, hidden=hidden, heads=None, key_heads=None)
    assert (free.num_heads, free.num_key_heads) == (heads, heads)
    check_sizes(free)
