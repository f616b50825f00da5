"""The blocks of masks and the number of commits of each step, checked by hand."""

import pytest

from mdmscale.generation.schedule import block_sizes, commits_per_step, even_split


def test_an_even_split_gives_the_remainder_to_the_first() -> None:
    assert even_split(7, 3) == [3, 2, 2]
    assert even_split(2, 4) == [1, 1, 0, 0]


@pytest.mark.parametrize(
    "masks, block_length, sizes", [(7, None, [7]), (7, 3, [3, 3, 1]), (2, 5, [2]), (0, None, []), (0, 3, [])]
)
def test_block_sizes(masks: int, block_length: int | None, sizes: list[int]) -> None:
    assert block_sizes(masks, block_length) == sizes


@pytest.mark.parametrize(
    "sizes, steps, commits",
    [
        ([3, 2], None, [[1, 1, 1], [1, 1]]),
        ([8], 3, [[3, 3, 2]]),
        ([4, 4], 4, [[2, 2], [2, 2]]),
        ([4, 4, 1], 8, [[2, 1, 1], [2, 1, 1], [1]]),  # the last block has one mask, so one pass is enough
        ([3], 8, [[1, 1, 1]]),  # an infilling with fewer masks than steps
        ([4, 4], 1, [[4], [4]]),  # and one with more blocks than steps
        ([], 4, []),
    ],
)
def test_commits_per_step(sizes: list[int], steps: int | None, commits: list[list[int]]) -> None:
    assert commits_per_step(sizes, steps) == commits
    assert [sum(block) for block in commits] == sizes
