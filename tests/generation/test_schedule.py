"""The blocks of masks and the number of commits of each step, checked by hand."""

import numpy as np
import pytest
import torch
from generation.reference_dream import origin_steps
from scipy import stats

from mdmscale.generation.schedule import (
    block_sizes,
    commits_per_step,
    dream_commits,
    even_split,
    independent_commits,
)


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


@pytest.mark.parametrize("masks, steps", [(8, 8), (64, 64), (64, 16), (16, 40), (1000, 9), (5, 1), (1, 4)])
def test_dream_s_schedule_is_its_formula(masks: int, steps: int) -> None:
    rates = torch.linspace(1, 1e-3, steps + 1)
    left, expected = masks, []
    for step in range(steps):
        share = 1 - rates[step + 1] / rates[step]
        expected.append(int(torch.tensor(left) * share) if step < steps - 1 else left)
        left -= expected[-1]
    assert dream_commits(masks, steps) == expected
    assert commits_per_step([masks], steps, "dream") == [[number for number in expected if number]]


def test_dream_s_first_step_commits_nothing_and_its_last_one_two_with_a_step_a_mask() -> None:
    assert dream_commits(8, 8) == [0, 1, 1, 1, 1, 1, 1, 2]
    assert commits_per_step([3, 2], None, "dream") == [[1, 2], [2]]


def test_independent_masks_go_as_in_dream_s_origin() -> None:
    """The numbers of masks in each step have the distribution of the loop that draws in every step."""
    random = np.random.default_rng(0)
    draws, masks, steps = 4000, 3, 3
    given = [tuple(independent_commits(random.random(masks), steps)) for _ in range(draws)]
    loops = [np.bincount(origin_steps(masks, steps, random), minlength=steps) for _ in range(draws)]
    expected = [tuple(each.tolist()) for each in loops]
    kinds = sorted(set(given) | set(expected))
    assert len(kinds) == 10 and all(sum(kind) == masks for kind in kinds)
    table = [[texts.count(kind) for kind in kinds] for texts in (given, expected)]
    assert stats.chi2_contingency(table).pvalue > 1e-4


def test_blocks_share_the_uniforms_of_independent_masks() -> None:
    uniforms = np.array([0.9, 0.1, 0.7, 0.9, 0.2])
    assert commits_per_step([2, 3], 4, "independent", uniforms) == [[1, 1], [2, 1]]
