"""The built-in corruptions: their masks, rates and weights."""

import numpy as np
import pytest

from mdmscale.diffusion.bernoulli import BernoulliMasks
from mdmscale.diffusion.corruption import Draw
from mdmscale.diffusion.levels import Levels
from mdmscale.diffusion.maskings import CORRUPTIONS
from mdmscale.diffusion.noise import syrm_eligible
from mdmscale.diffusion.schedule import mask_rate

EPS = 1e-3
GRID = (np.arange(100_000) + 0.5) / 100_000


def draw_of(t: float, uniforms: np.ndarray, eligible: np.ndarray | None = None, num: int = 1) -> Draw:
    """A draw at t with `num` rows of the same uniforms."""
    length = len(uniforms)
    eligible = np.ones(length, dtype=bool) if eligible is None else eligible
    rows = np.tile(uniforms, (num, 1))
    return Draw(Levels.at(t, num), rows, eligible, 1 / eligible.sum(), EPS, np.zeros(length))


def masks(masking: str, t: float, uniforms: np.ndarray = GRID) -> np.ndarray:
    """The masks [rows, length] of a corruption. By default the sample's uniforms form a grid."""
    return CORRUPTIONS[masking].corrupt(draw_of(t, uniforms)).masks


@pytest.mark.parametrize("masking", ["mirror", "complement"])
@pytest.mark.parametrize("t", [0.0, 0.3, 0.5, 0.8, 1.0])
def test_both_rows_are_marginally_bernoulli(masking: str, t: float) -> None:
    second = t if masking == "mirror" else 1 - t
    expected = [mask_rate(t, EPS), mask_rate(second, EPS)]
    assert masks(masking, t).mean(axis=1) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("t", [0.2, 0.5, 0.8])
def test_mirror_covariance(t: float) -> None:
    first, second = masks("mirror", t).astype(float)
    rate = mask_rate(t, EPS)
    covariance = np.mean(first * second) - first.mean() * second.mean()
    assert covariance == pytest.approx(max(2 * rate - 1, 0) - rate**2, abs=1e-4)


@pytest.mark.parametrize("masking", list(CORRUPTIONS))
def test_only_eligible_positions_are_masked(masking: str) -> None:
    eligible = np.array([False, True, False, True])
    last = np.nextafter(1, 0)
    for t, uniform in ((1.0, 0.0), (1.0, 0.5), (1.0, last), (0.0, 0.0)):
        rows = CORRUPTIONS[masking].corrupt(draw_of(t, np.full(4, uniform), eligible, num=2))
        assert not rows.masks[:, ~eligible].any()
        assert ((rows.weights > 0) == rows.masks).all()
    assert CORRUPTIONS["mirror"].corrupt(draw_of(1.0, np.full(4, 0.5), eligible)).masks[:, eligible].all()


def test_first_mirror_row_is_the_bernoulli_mask() -> None:
    uniforms = np.random.default_rng(0).random(64)
    assert np.array_equal(masks("bernoulli", 0.4, uniforms)[0], masks("mirror", 0.4, uniforms)[0])


def test_delimiters_have_a_higher_rate_up_to_one() -> None:
    eligible, extra = np.array([True, True, False]), np.array([0.0, 0.1, 0.1])
    corruption = CORRUPTIONS["mirror"]
    assert isinstance(corruption, BernoulliMasks)
    for t, expected in ((0.5, [0.5, 0.6, 0.0]), (0.95, [0.95, 1.0, 0.0])):
        rates = corruption.rates(Draw(Levels.at(t), np.zeros((1, 3)), eligible, 1.0, 0.0, extra))
        assert rates == pytest.approx(np.array([expected, expected]))


def test_syrm_takes_structural_prompt_tokens_and_a_share_of_the_others() -> None:
    response = np.arange(10_000) >= 9_000
    structural = np.arange(10_000) % 10 == 0
    eligible = syrm_eligible(response, structural, 0.25, np.random.default_rng(0).random(10_000))
    assert eligible[response].all() and eligible[structural].all()
    assert eligible[~response & ~structural].mean() == pytest.approx(0.25, abs=0.02)
