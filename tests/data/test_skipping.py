"""Samples that are left out: exactly those of the ranges, and the others in their order."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mdmscale.config.data import DataSection
from mdmscale.config.run import RunConfig
from mdmscale.data.opening import open_source
from mdmscale.data.skipping import merged_ranges, number_of_sample, ranges_before
from mdmscale.system.errors import UserError

RANGES = [[[3, 5]], [[0, 4], [4, 6]], [[10, 12], [2, 3], [11, 20]], [[5, 9], [6, 7]], []]


@pytest.mark.parametrize("ranges", RANGES)
def test_the_rest_stays_in_order(ranges: list[list[int]]) -> None:
    left_out = {number for start, stop in ranges for number in range(start, stop)}
    expected = [number for number in range(60) if number not in left_out][:40]
    merged = merged_ranges(ranges)
    assert [number_of_sample(index, merged) for index in range(40)] == expected
    assert all(one[1] < two[0] for one, two in pairwise(merged))


@pytest.mark.parametrize("ranges", RANGES)
def test_ranges_before_a_sample_decide_those_until_then(ranges: list[list[int]]) -> None:
    merged = merged_ranges(ranges)
    for num in range(30):
        needed = ranges_before(num, merged)
        numbers = [number_of_sample(index, merged) for index in range(num)]
        assert [number_of_sample(index, needed) for index in range(num)] == numbers
        for each in needed:  # and no other ranges do
            fewer = [other for other in needed if other != each]
            assert [number_of_sample(index, fewer) for index in range(num)] != numbers


def test_a_source_lacks_the_samples_in_every_epoch_order_and_length(corpus: Path) -> None:
    def source(skip: list[list[int]]) -> Any:
        options = {"sequence_length": 32, "random_length_fraction": 0.2, "skip": skip}
        return open_source(DataSection(kind="tokens", path=str(corpus), **options), 3, 512, 0)

    whole, less = source([]), source([[2, 5]])
    for index, number in enumerate([0, 1, 5, 6, 7, 8]):
        assert np.array_equal(less.train_sample(index).token_ids, whole.train_sample(number).token_ids)
    assert less.fingerprint == whole.fingerprint, "a run may begin to leave samples out"
    assert np.array_equal(less.held_out_sample(2).token_ids, whole.held_out_sample(2).token_ids)


@pytest.mark.parametrize("skip", [[[1]], [[1, 2, 3]], [[5, 5]], [[5, 2]], [[-1, 3]], [3], [[0.5, 2]]])
def test_what_is_no_range_is_refused(tiny: dict[str, Any], skip: Any) -> None:
    tiny["data"]["skip"] = skip
    with pytest.raises(ValueError, match=r"skip"):
        RunConfig.model_validate(tiny)


def test_only_what_comes_after_a_checkpoint_can_be_left_out(tiny: dict[str, Any], ranks: Any) -> None:
    """A run that diverged resumes before the samples at fault. What it has consumed stays as it was."""
    from mdmscale.training.checkpoint import check_continues
    from mdmscale.training.setup import set_up

    def config(skip: list[list[int]]) -> RunConfig:
        return RunConfig.model_validate({**tiny, "data": {**tiny["data"], "skip": skip}})

    run = set_up(config([[4, 8]]), ranks)
    run.step = 2  # samples 0..3 and 8..19 are consumed
    state = run.state({})
    for skip in ([[4, 8]], [[4, 8], [20, 28]], [[6, 8], [4, 6], [24, 32]]):
        check_continues(state, Path("step-2"), config(skip))
    for skip in ([], [[4, 9]], [[4, 8], [10, 11]], [[0, 1], [4, 8]]):
        with pytest.raises(
            UserError, match=r"data\.skip = .* has consumed 16 samples with \[\[4, 8\]\]; change"
        ):
            check_continues(state, Path("step-2"), config(skip))
