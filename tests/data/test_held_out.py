import numpy as np
import pytest

from mdmscale.data.held_out import held_out_indices, kept_before, kept_index
from mdmscale.system.errors import UserError


@pytest.mark.parametrize(
    ("count", "share", "expected"),
    [(1000, 0.01, 10), (1001, 0.01, 11), (10, 0.01, 1), (100, 0.07, 7), (2, 0.9, 1), (5, 0.99, 4)],
)
def test_the_share_is_rounded_up_but_never_all(count, share, expected):
    assert len(held_out_indices(count, share, "documents")) == expected


def test_one_place_in_each_equal_block():
    places = held_out_indices(1000, 0.05, "documents")
    assert (places // 20).tolist() == list(range(50))
    assert len(set(places % 20)) > 5


def test_a_million_at_most_are_held_out():
    places = held_out_indices(10**9, 0.01, "samples")
    assert (places // 1000).tolist() == list(range(10**6))


def test_nothing_is_held_out_of_share_0():
    assert len(held_out_indices(1, 0, "documents")) == 0


def test_a_single_item_cannot_be_split():
    with pytest.raises(UserError, match=r"data\.held_out = 0\.1: 1 documents cannot be split"):
        held_out_indices(1, 0.1, "documents")


@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.9])
def test_kept_places_are_the_others_in_order(share):
    held_out = held_out_indices(200, share, "samples")
    others = np.setdiff1d(np.arange(200), held_out)
    before = kept_before(held_out)
    assert [kept_index(before, number) for number in range(len(others))] == others.tolist()
