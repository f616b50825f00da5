import numpy as np
import pytest

from mdmscale.diffusion.uniforms import Stream, generator, mask_uniforms, uniform_t


def test_draws_are_a_pure_function_of_seed_stream_and_index() -> None:
    before = np.random.get_state()[1].copy()
    first = mask_uniforms(5, 7, 16)
    np.random.random(100)
    assert np.array_equal(first, mask_uniforms(5, 7, 16))
    np.random.set_state(("MT19937", before, 624, 0, 0.0))
    mask_uniforms(5, 7, 16)
    assert np.array_equal(np.random.get_state()[1], before), "the global generator was touched"


def test_a_longer_draw_begins_with_the_shorter_one() -> None:
    assert np.array_equal(mask_uniforms(1, 2, 64)[:16], mask_uniforms(1, 2, 16))


def test_seeds_streams_and_indices_are_independent() -> None:
    draws = [
        generator(seed, stream, index).random(8)
        for seed in (0, 1)
        for stream in Stream
        for index in (0, 1, 2**40)
    ]
    assert len({tuple(draw) for draw in draws}) == len(draws)
    many = np.array([mask_uniforms(0, index, 4) for index in range(4000)])
    correlation = np.corrcoef(np.concatenate([many[:-1].T, many[1:].T]))
    assert np.abs(correlation - np.eye(8)).max() < 0.07


def test_uniforms_are_uniform() -> None:
    draws = np.sort([uniform_t(9, index) for index in range(4000)])
    distance = np.abs(draws - (np.arange(4000) + 0.5) / 4000).max()
    assert distance < 1.63 / np.sqrt(4000), "Kolmogorov-Smirnov at 1%"


def test_values_are_fixed_for_good() -> None:
    """Every release must draw the same noise, so these numbers must never change."""
    assert uniform_t(0, 0) == pytest.approx(0.011546754286331562, abs=0)
    assert mask_uniforms(0, 5, 2).tolist() == [0.8018428278283398, 0.5689666861191888]
