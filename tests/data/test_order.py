import numpy as np
import pytest

from mdmscale.data.order import permute, sequence_of_sample

SIZES = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 63, 64, 65, 100, 255, 256, 257, 1000]


@pytest.mark.parametrize("size", SIZES)
def test_an_epoch_visits_every_sequence_once(size):
    for epoch in range(3):
        images = [sequence_of_sample(epoch * size + position, size, seed=5) for position in range(size)]
        assert sorted(images) == list(range(size))


def order(seed: int, epoch: int, size: int = 500) -> list[int]:
    return [permute(position, size, seed, epoch) for position in range(size)]


def test_epochs_and_seeds_have_their_own_orders():
    orders = {tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}
    assert len(orders) == 4
    assert order(0, 1) == [sequence_of_sample(500 + position, 500, seed=0) for position in range(500)]


def test_the_order_looks_random():
    """Position and image, and successive images, are uncorrelated (5 standard deviations of 4000 draws)."""
    images = np.asarray([order(seed, 0) for seed in range(8)])
    positions = np.tile(np.arange(500), (8, 1))
    assert abs(np.corrcoef(positions.ravel(), images.ravel())[0, 1]) < 5 / np.sqrt(4000)
    assert abs(np.corrcoef(images[:, 1:].ravel(), images[:, :-1].ravel())[0, 1]) < 5 / np.sqrt(4000)


def test_every_image_is_as_likely():
    """Over many keys, position 0 of 5 is sent to every place equally often (5 standard deviations)."""
    counts = np.bincount([permute(0, 5, seed, 0) for seed in range(2000)], minlength=5)
    assert np.abs(counts - 400).max() < 5 * np.sqrt(2000 * 0.2 * 0.8)


def test_a_corpus_of_a_trillion_sequences_needs_no_memory():
    images = {permute(position, 10**12, 0, 0) for position in range(200)}
    assert len(images) == 200 and max(images) > 10**11
