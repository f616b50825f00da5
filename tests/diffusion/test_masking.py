import numpy as np
import pytest

from mdmscale.diffusion.masking import copy_rates, draw_masks, position_rates
from mdmscale.diffusion.noise import syrm_eligible
from mdmscale.diffusion.schedule import mask_rate

EPS = 1e-3
GRID = (np.arange(100_000) + 0.5) / 100_000


def pair(masking: str, t: float) -> np.ndarray:
    """Masks [2, 100_000] of a pair whose uniforms are a grid."""
    eligible = np.ones(len(GRID), dtype=bool)
    return draw_masks(GRID, position_rates(copy_rates(masking, t, EPS), eligible))


@pytest.mark.parametrize("masking", ["mirror", "complement"])
@pytest.mark.parametrize("t", [0.0, 0.3, 0.5, 0.8, 1.0])
def test_both_copies_are_marginally_bernoulli(masking: str, t: float) -> None:
    second = t if masking == "mirror" else 1 - t
    expected = [mask_rate(t, EPS), mask_rate(second, EPS)]
    assert pair(masking, t).mean(axis=1) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("t", [0.2, 0.5, 0.8])
def test_mirror_covariance(t: float) -> None:
    first, second = pair("mirror", t).astype(float)
    rate = mask_rate(t, EPS)
    covariance = np.mean(first * second) - first.mean() * second.mean()
    assert covariance == pytest.approx(max(2 * rate - 1, 0) - rate**2, abs=1e-4)


@pytest.mark.parametrize("masking", ["bernoulli", "mirror", "complement"])
def test_only_eligible_positions_are_masked(masking: str) -> None:
    eligible = np.array([False, True, False, True])
    for uniform in (0.0, 0.5, 1 - 2**-53):
        rates = position_rates(copy_rates(masking, 1.0, EPS), eligible)
        assert not draw_masks(np.full(4, uniform), rates)[:, ~eligible].any()
    rates = position_rates(copy_rates("mirror", 1.0, EPS), eligible)
    assert draw_masks(np.full(4, 0.5), rates)[:, eligible].all()


def test_first_mirror_copy_is_the_bernoulli_mask() -> None:
    uniforms, eligible = np.random.default_rng(0).random(64), np.ones(64, dtype=bool)
    single, both = (
        draw_masks(uniforms, position_rates(copy_rates(masking, 0.4, EPS), eligible))
        for masking in ("bernoulli", "mirror")
    )
    assert np.array_equal(single[0], both[0])


def test_delimiters_have_a_higher_rate_up_to_one() -> None:
    eligible, is_delimiter = np.array([True, True, False]), np.array([False, True, True])
    rates = position_rates(np.array([0.5, 0.95]), eligible, is_delimiter, delta=0.1)
    assert rates == pytest.approx(np.array([[0.5, 0.6, 0.0], [0.95, 1.0, 0.0]]))


def test_syrm_takes_structural_prompt_tokens_and_a_share_of_the_others() -> None:
    response = np.arange(10_000) >= 9_000
    structural = np.arange(10_000) % 10 == 0
    eligible = syrm_eligible(response, structural, 0.25, np.random.default_rng(0).random(10_000))
    assert eligible[response].all() and eligible[structural].all()
    assert eligible[~response & ~structural].mean() == pytest.approx(0.25, abs=0.02)
