from itertools import permutations, product
from types import SimpleNamespace

import numpy as np
import pytest

from mdmscale.diffusion import t_samplers
from mdmscale.diffusion.density import DensityTable
from mdmscale.diffusion.t_samplers import TSampler


def test_uniform_weighs_one() -> None:
    draws = [TSampler(seed=1, global_batch_size=8).draw(index) for index in range(100)]
    assert {float(levels.importance_weights[0]) for levels in draws} == {1.0}
    assert len({float(levels.t[0]) for levels in draws}) == 100


@pytest.mark.parametrize("strata", [16, 4])
def test_every_stratum_is_hit_equally_often_in_each_global_batch(strata: int) -> None:
    sampler = TSampler(seed=1, global_batch_size=16, strata=strata)
    for step in range(5):
        u = [sampler.uniform(step * 16 + slot) for slot in range(16)]
        counts = np.bincount((np.array(u) * strata).astype(int), minlength=strata)
        assert counts.tolist() == [16 // strata] * strata


@pytest.mark.parametrize(("size", "strata"), [(32, 5), (7, 3), (3, 8), (5, 4)])
def test_strata_that_do_not_divide_the_batch_differ_by_one_sample_at_most(size: int, strata: int) -> None:
    sampler = TSampler(seed=1, global_batch_size=size, strata=strata)
    favoured = set()
    for step in range(40):
        u = np.array([sampler.uniform(step * size + slot) for slot in range(size)])
        counts = np.bincount((u * strata).astype(int), minlength=strata)
        assert sorted(set(counts)) == [size // strata, size // strata + 1]
        favoured |= set(np.flatnonzero(counts > size // strata))
    assert favoured == set(range(strata)), "each stratum has the extra sample in some step"


@pytest.mark.parametrize(("size", "strata"), [(4, 3), (3, 2), (2, 3), (4, 2)])
def test_the_stratum_of_every_sample_is_uniform_over_all_draws(
    monkeypatch: pytest.MonkeyPatch, size: int, strata: int
) -> None:
    """Every outcome of the two permutations that a step draws, each as likely as the others."""
    counts = np.zeros((size, strata))
    for order, of_strata in product(permutations(range(size)), permutations(range(strata))):
        drawn = SimpleNamespace(permutation=lambda n, both=(order, of_strata): np.array(both[n == strata]))
        monkeypatch.setattr(t_samplers, "generator", lambda *_, drawn=drawn: drawn)
        counts[np.arange(size), t_samplers._step_strata.__wrapped__(0, 0, size, strata)] += 1
    assert (counts == counts[0, 0]).all(), "P(stratum of sample j = k) = 1 / K"


def test_strata_are_permuted_anew_each_step_and_marginally_uniform() -> None:
    sampler = TSampler(seed=1, global_batch_size=8, strata=8)
    orders = {tuple(int(sampler.uniform(step * 8 + slot) * 8) for slot in range(8)) for step in range(20)}
    assert len(orders) == 20
    first_slot = [sampler.uniform(step * 8) for step in range(2000)]
    assert np.mean(first_slot) == pytest.approx(0.5, abs=0.03)
    assert np.var(first_slot) == pytest.approx(1 / 12, abs=0.01)


def test_stratified_draws_have_less_variance() -> None:
    plain, stratified = (TSampler(seed=1, global_batch_size=8, strata=strata) for strata in (None, 8))

    def batch_means(sampler: TSampler) -> list[float]:
        return [np.mean([sampler.uniform(step * 8 + slot) for slot in range(8)]) for step in range(300)]

    assert np.var(batch_means(stratified)) < np.var(batch_means(plain)) / 20


def test_strata_go_through_any_density() -> None:
    density = DensityTable.from_weights(np.array([0, 0.2, 1.0]), np.array([9.0, 1.0]), 0.05)
    sampler = TSampler(seed=1, global_batch_size=10, strata=10, density=density)
    shares = [
        np.mean([sampler.draw(step * 10 + slot).t[0] < 0.2 for slot in range(10)]) for step in range(50)
    ]
    expected = density.density[0] * 0.2
    assert np.abs(shares - expected).max() <= 0.1 + 1e-9, "at most one sample from the exact share"


def test_low_discrepancy_is_one_grid_at_a_common_shift() -> None:
    sampler = TSampler(seed=1, global_batch_size=8, low_discrepancy=True)
    firsts = []
    for step in range(500):
        u = np.array([sampler.uniform(step * 8 + slot) for slot in range(8)])
        assert np.diff(np.sort(u)) == pytest.approx(np.full(7, 1 / 8))
        firsts.append(u[0])
    assert np.mean(firsts) == pytest.approx(0.5, abs=0.05), "each sample's u is uniform by itself"
    assert np.var(firsts) == pytest.approx(1 / 12, abs=0.01)


def test_a_uniform_density_over_a_window_weighs_its_draws_by_the_window_s_width() -> None:
    for strata in (None, 4):
        density = DensityTable.uniform(0.3, 0.8)
        sampler = TSampler(seed=1, global_batch_size=8, strata=strata, density=density)
        draws = [sampler.draw(index) for index in range(2000)]
        t = np.array([levels.t[0] for levels in draws])
        assert {float(levels.importance_weights[0]) for levels in draws} == {0.5}
        assert t.min() >= 0.3 and t.max() < 0.8
        assert t.mean() == pytest.approx(0.55, abs=0.02)


def test_a_sample_may_draw_several_t_the_first_as_if_alone() -> None:
    sampler = TSampler(seed=1, global_batch_size=8, strata=8)
    for index in range(20):
        levels = sampler.draw(index, num_t=5)
        assert levels.t.shape == levels.importance_weights.shape == (5,) and len(set(levels.t.tolist())) == 5
        assert levels.t[0] == sampler.draw(index).t[0]
    others = np.concatenate([sampler.draw(index, num_t=5).t[1:] for index in range(2000)])
    assert (others.mean(), others.var()) == pytest.approx((0.5, 1 / 12), abs=0.01)
