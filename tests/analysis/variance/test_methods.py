"""The algebra of variances against brute force: whole batches of a toy, drawn by the real t-sampler.

In the toy a draw's gradient has 2 numbers and is known: with CE_i = c[x, i] (1 + t) for each masked i,
Y = sum_i m_i c[x, i] (1 + t) / (n r). Its variance over masks has closed forms, and g depends on x and t.
"""

import numpy as np
import pytest
import torch

from mdmscale.analysis.variance.decomposition import decompose, loss_decomposition
from mdmscale.analysis.variance.draws import PLAIN, Draws
from mdmscale.analysis.variance.methods import Method, coefficients, compared_methods
from mdmscale.analysis.variance.moments import Moments, SampleStatistics, compute_moments, sample_statistics
from mdmscale.diffusion.density import DensityTable
from mdmscale.diffusion.p_pots import TABLE_EDGES
from mdmscale.diffusion.schedule import mask_rate

EPS, BATCH, LENGTH = 0.05, 4, 5  # a large eps: 1 / r has no heavy tail that a brute force would miss
SLOPES = np.random.default_rng(0).normal(1.0, 0.7, size=(6, LENGTH, 2))  # c: [kinds of x, positions, 2]
SKEWED = DensityTable.from_weights(np.array([0, 0.05, 0.3, 1.0]), np.array([4.0, 2.0, 1.0]), 0.05)
WIDTHS = np.diff(TABLE_EDGES)


def gradients(kinds: np.ndarray, t: np.ndarray, uniforms: np.ndarray, masking: str) -> np.ndarray:
    """Y of draws, [..., 2], from their sample kinds, t [...] and uniforms [..., LENGTH]."""
    rate = mask_rate(t, EPS)[..., None]

    def row(masks: np.ndarray, at: np.ndarray) -> np.ndarray:
        weights = masks * (1 + at)[..., None] / (LENGTH * mask_rate(at, EPS))[..., None]
        return np.einsum("...i,...ik->...k", weights, SLOPES[kinds])

    first = row(uniforms < rate, t)
    if masking == "bernoulli":
        return first
    other = t if masking == "mirror" else 1 - t
    return (first + row(uniforms >= 1 - mask_rate(other, EPS)[..., None], other)) / 2


def toy_draws(kind: int, rng: np.random.Generator) -> Draws:
    """A sample's draws, made as the measuring pass makes them."""
    low = TABLE_EDGES[:-1]
    first, other, mirror, complement = low + WIDTHS * rng.random((4, len(low)))
    t = np.stack([first, first, other], axis=1)  # [K, 3]
    single = gradients(np.full(t.shape, kind), t, rng.random((*t.shape, LENGTH)), "bernoulli")
    norms = {
        masking: np.sum(
            gradients(np.full(at.shape, kind), at, rng.random((len(at), LENGTH)), masking) ** 2, axis=-1
        )
        for masking, at in (("mirror", mirror), ("complement", complement))
    }
    return Draws(torch.from_numpy(single.reshape(-1, 2)), norms)


@pytest.fixture(scope="module")
def measured() -> tuple[list[SampleStatistics], np.ndarray, np.ndarray]:
    """Statistics of 4,000 samples, their groups, and the products of the groups' sums."""
    rng = np.random.default_rng(1)
    draws = [toy_draws(int(rng.integers(len(SLOPES))), rng) for _ in range(4000)]
    groups = np.arange(len(draws)) % 12
    sums = np.zeros((12, 16, 2))
    for group, each in zip(groups, draws, strict=True):
        sums[group] += each.single.numpy().reshape(16, 3, 2).mean(axis=1)
    products = np.einsum("gkp,hlp->gkhl", sums, sums)
    return [sample_statistics(each) for each in draws], groups, products


@pytest.fixture(scope="module")
def estimated(measured: tuple[list[SampleStatistics], np.ndarray, np.ndarray]) -> Moments:
    return compute_moments(*measured)


def brute_force(method: Method, density: DensityTable, num_batches: int = 6000) -> float:
    """B times the trace of the covariance of the batch mean, measured on whole batches."""
    rng = np.random.default_rng(2)
    sampler, each = method.sampler(BATCH, density), method.draws_per_sample
    drawn = [sampler.draw(index) for index in range(num_batches * sampler.global_batch_size)]
    t, weights = np.array(drawn).T.reshape(2, num_batches, BATCH, each)
    kinds = np.broadcast_to(rng.integers(len(SLOPES), size=(num_batches, BATCH, 1)), t.shape)
    values = gradients(kinds, t, rng.random((*t.shape, LENGTH)), method.masking) * weights[..., None]
    means = values.mean(axis=(1, 2))  # [num_batches, 2]
    return BATCH * float(means.var(axis=0, ddof=1).sum())


@pytest.mark.parametrize("method", compared_methods((0.3, 0.8)), ids=lambda method: method.name)
def test_a_method_s_variance_is_that_of_whole_batches(method: Method, estimated: Moments) -> None:
    density = DensityTable.uniform() if method.target is None else SKEWED
    predicted = coefficients(method, density, TABLE_EDGES, BATCH).variance(estimated)
    assert predicted == pytest.approx(brute_force(method, density), rel=0.08)


def test_independent_methods_do_not_depend_on_the_size_of_the_batch(estimated: Moments) -> None:
    """For independent samples, B times the variance of a mean of B does not depend on B."""
    for method in (Method("single"), Method("pair", "mirror"), Method("other", "complement")):
        found = [coefficients(method, SKEWED, TABLE_EDGES, size).variance(estimated) for size in (4, 64, 512)]
        assert found == pytest.approx([found[0]] * 3, rel=0.01)


def test_methods_differ_in_the_toy(estimated: Moments) -> None:
    """Otherwise the agreement above would prove nothing."""
    found = [
        coefficients(each, DensityTable.uniform(), TABLE_EDGES, BATCH).variance(estimated)
        for each in (Method("a"), Method("b", stratified=True), Method("c", "mirror"))
    ]
    assert found[1] < 0.97 * found[0] and found[2] < 0.9 * found[0]


def test_moments_meet_their_closed_forms(estimated: Moments) -> None:
    """One draw: s (1-r)/r. A pair: s (1-2r)/2r up to r = 1/2, s (2r-1)(1-r)/2r^2 above; all by (1+t)^2."""
    grid = TABLE_EDGES[:-1, None] + WIDTHS[:, None] * (np.arange(200) + 0.5) / 200  # [K, 200]
    rate, scale = mask_rate(grid, EPS), (1 + grid) ** 2
    s = np.mean(np.sum(SLOPES**2, axis=(1, 2))) / LENGTH**2
    means = SLOPES.mean(axis=1)  # [kinds, 2]
    squared = np.mean(np.sum(means**2, axis=1))
    single = np.mean(scale * (s * (1 - rate) / rate + squared), axis=1)
    pair = np.where(rate <= 0.5, (1 - 2 * rate) / (2 * rate), (2 * rate - 1) * (1 - rate) / (2 * rate**2))
    mirror = np.mean(scale * (s * pair + squared), axis=1)
    assert estimated.single == pytest.approx(single, rel=0.08)
    assert estimated.paired["mirror"] == pytest.approx(mirror, rel=0.08)
    assert estimated.same_t == pytest.approx(np.mean(scale, axis=1) * squared, rel=0.25)
    overall = means.mean(axis=0)
    at = np.mean(1 + grid, axis=1)
    assert estimated.mean[6:, 6:] == pytest.approx(np.outer(at, at)[6:, 6:] * (overall @ overall), rel=0.1)


def test_a_b_and_c_meet_their_closed_forms(estimated: Moments) -> None:
    """int v dt; (int (1+t)^2 dt - (int 1+t dt)^2) E|c|^2; (int 1+t dt)^2 tr Cov c."""
    grid = (np.arange(200_000) + 0.5) / 200_000
    rate = mask_rate(grid, EPS)
    s = np.mean(np.sum(SLOPES**2, axis=(1, 2))) / LENGTH**2
    means = SLOPES.mean(axis=1)
    expected = {
        "A": s * np.mean((1 + grid) ** 2 * (1 - rate) / rate),
        "B": (7 / 3 - 9 / 4) * np.mean(np.sum(means**2, axis=1)),
        "C": 9 / 4 * np.sum(means.var(axis=0)),
    }
    found = decompose(estimated, WIDTHS)
    assert found["A"] == pytest.approx(expected["A"], rel=0.1)
    assert found["C"] == pytest.approx(expected["C"], rel=0.25)
    assert found["B"] == pytest.approx(expected["B"], abs=0.03 * expected["A"])


def test_decomposition_of_the_loss_has_intervals_that_hold_the_truth() -> None:
    rng = np.random.default_rng(5)
    samples, means, plain = [], [], []
    for _ in range(1500):
        kind = int(rng.integers(len(SLOPES)))
        draws = toy_draws(kind, rng)
        loss = Draws(draws.single[:, :1], draws.paired)  # the first number as the loss
        samples.append(sample_statistics(loss))
        means.append(loss.single.reshape(16, 3).mean(dim=1).numpy())
        t = rng.random(PLAIN)
        values = gradients(np.full(PLAIN, kind), t, rng.random((PLAIN, LENGTH)), "bernoulli")
        plain.append(values[:, 0])
    found = loss_decomposition(samples, np.array(means), np.array(plain), WIDTHS)
    grid = (np.arange(200_000) + 0.5) / 200_000
    rate = mask_rate(grid, EPS)
    c = SLOPES[..., 0]
    s, mean = np.mean(np.sum(c**2, axis=1)) / LENGTH**2, c.mean(axis=1)
    truth = {
        "A": s * np.mean((1 + grid) ** 2 * (1 - rate) / rate),
        "C": 9 / 4 * mean.var(),
    }
    for name, value in truth.items():
        assert found[name].low * 0.9 < value < found[name].high * 1.1, name
    assert found["sum"].low < found["total"].high and found["total"].low < found["sum"].high
    assert found["sum"].value == pytest.approx(sum(found[name].value for name in "ABC"))


def test_leaving_a_group_out_is_measuring_without_it(
    measured: tuple[list[SampleStatistics], np.ndarray, np.ndarray],
) -> None:
    samples, groups, products = measured
    without = compute_moments(samples, groups, products, left_out=5)
    kept = [sample for sample, group in zip(samples, groups, strict=True) if group != 5]
    places = [place for place in range(12) if place != 5]
    again = compute_moments(kept, groups[groups != 5], products[places][:, :, places])
    assert without.mean == pytest.approx(again.mean)
    assert without.single == pytest.approx(again.single)
