import numpy as np
import pytest

from mdmscale.diffusion.masking import draw_masks


@pytest.mark.parametrize("rate", [1e-3, 0.3, 0.5, 0.8, 1.0])
def test_both_copies_are_marginally_bernoulli(rate: float) -> None:
    uniforms = (np.arange(100_000) + 0.5) / 100_000
    masks = draw_masks("mirror", uniforms, np.ones_like(uniforms, dtype=bool), rate)
    assert masks.mean(axis=1) == pytest.approx([rate, rate], abs=1e-4)


@pytest.mark.parametrize("rate", [0.2, 0.5, 0.8])
def test_mirror_covariance(rate: float) -> None:
    uniforms = (np.arange(100_000) + 0.5) / 100_000
    first, second = draw_masks("mirror", uniforms, np.ones_like(uniforms, dtype=bool), rate).astype(float)
    covariance = np.mean(first * second) - first.mean() * second.mean()
    assert covariance == pytest.approx(max(2 * rate - 1, 0) - rate**2, abs=1e-4)


def test_only_eligible_positions_are_masked() -> None:
    eligible = np.array([False, True, False, True])
    for masking in ("bernoulli", "mirror"):
        masks = draw_masks(masking, np.full(4, 0.5), eligible, 1.0)
        assert np.array_equal(masks, np.broadcast_to(eligible, masks.shape))


def test_first_mirror_copy_is_the_bernoulli_mask() -> None:
    uniforms = np.random.default_rng(0).random(64)
    eligible = np.ones(64, dtype=bool)
    assert np.array_equal(
        draw_masks("mirror", uniforms, eligible, 0.4)[0], draw_masks("bernoulli", uniforms, eligible, 0.4)[0]
    )
