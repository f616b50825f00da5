"""The objective of the authors' scripts: weights without 1 / p, pairs only below t = 0.9, a range of t."""

import logging

import numpy as np
import pytest
from diffusion.enumeration import EPS, SKEWED, expectation, make_noise, objective, random_table

from mdmscale.config.diffusion import DiffusionSection
from mdmscale.data.loader import uniform_density
from mdmscale.diffusion.levels import Levels
from mdmscale.diffusion.loss_weight import ELBO
from mdmscale.diffusion.noise import Noise, noise_sample
from mdmscale.diffusion.p_pots import probe_edges
from mdmscale.diffusion.sample import Sample
from mdmscale.diffusion.t_samplers import TSampler
from mdmscale.parallel.ranks import Ranks
from mdmscale.training.p_pots import PPots

P_POTS = {"target": "paper", "fit": "epr"}
N = 5


def scripts(masking: str) -> Noise:
    return make_noise(objective="paper_scripts", t_sampler="p_pots", masking=masking, p_pots=P_POTS)


@pytest.mark.parametrize("masking", ["bernoulli", "mirror"])
@pytest.mark.parametrize("t", [0.2, 0.6, 0.8999, 0.9, 0.95])
def test_weights_by_hand(masking: str, t: float) -> None:
    """1 / (n r), over two where there is a pair; no second mask from t = 0.9 on."""
    rate = (1 - EPS) * t + EPS
    uniforms = np.linspace(0.05, 0.97, N)
    sample = Sample(np.arange(N), np.ones(N, dtype=bool))
    u = SKEWED.distribution(np.array([t]))
    noised = noise_sample(sample, Levels(u, SKEWED), uniforms, scripts(masking))
    is_paired = masking == "mirror" and t < 0.9
    expected = [uniforms < rate, (uniforms >= 1 - rate) & is_paired][: 2 if masking == "mirror" else 1]
    assert np.array_equal(noised.masks, expected)
    assert noised.weights == pytest.approx(np.array(expected) / (N * rate) / (2 if is_paired else 1))
    assert noised.importance_weights[0] != pytest.approx(1), "p is not uniform there, yet nothing is weighed"


def test_its_expectation_is_not_the_objective() -> None:
    """It leans to where p is large: sum p(t) E l instead of sum E l."""
    sample, table = Sample(np.arange(3), np.ones(3, dtype=bool)), random_table(3)
    found = expectation(scripts("bernoulli"), SKEWED, table, sample)
    tilted = type(ELBO)(SKEWED.edges, SKEWED.density)
    assert found == pytest.approx(objective(tilted, table, sample), rel=1e-12)
    assert abs(found / objective(ELBO, table, sample) - 1) > 1e-3


def test_t_stays_within_the_scripts_range_without_a_uniform_share(
    ranks: Ranks, caplog: pytest.LogCaptureFixture
) -> None:
    """A fit that falls to next to nothing is not held up by a defensive share."""
    section = DiffusionSection(objective="paper_scripts", t_sampler="p_pots", p_pots=P_POTS)
    sampler = TSampler(seed=0, global_batch_size=8, density=uniform_density(section))
    p_pots = PPots(section, sampler, lambda *_: pytest.fail("no probe is due"))
    assert p_pots.edges == pytest.approx(np.linspace(1 / 30, 29 / 30, 30))
    assert np.array_equal(p_pots.edges, probe_edges(section.p_pots, section.drawn_range))
    middles = (p_pots.edges[:-1] + p_pots.edges[1:]) / 2
    with caplog.at_level(logging.WARNING):
        density = p_pots._fit(np.exp(14 * middles) * 1e-6, ranks).density
    assert not caplog.records
    assert (density.edges[0], density.edges[-1]) == pytest.approx((1 / 30, 29 / 30))
    assert density.density.min() < 0.03
    t = np.array([p_pots.t_sampler.draw(index).t[0] for index in range(500)])
    assert t.min() >= 1 / 30 and t.max() <= 29 / 30
