"""Variances, ratios and their parts against closed forms and whole batches, on toys with known gradients."""

import math
from dataclasses import fields, replace
from functools import cache

import numpy as np
import pytest
import torch
from analysis.variance.toys import Toy, ToySource, measured

from mdmscale.analysis.variance.collect import Collected
from mdmscale.analysis.variance.estimates import (
    Variances,
    compute_variances,
    curves,
    interval,
    noise_scale,
    ratios,
)
from mdmscale.analysis.variance.sums import DAMPING, MEASURES, GroupSums, adam_metric
from mdmscale.diffusion.counts import objective_weight
from mdmscale.diffusion.loss_weight import ELBO
from mdmscale.diffusion.noise import noise_sample
from mdmscale.diffusion.p_pots import TABLE_EDGES
from mdmscale.diffusion.schedule import mask_rate
from mdmscale.parallel.ranks import Ranks

GRADIENT, ADAM = MEASURES.index("gradient"), MEASURES.index("adam")
EPS = 1e-3
KINDS, SLOPE, LENGTH = 3, 0.8, 6
SCALES = np.random.default_rng(3).uniform(0.3, 2.0, KINDS * LENGTH)


def by_name(collected: Collected, values: np.ndarray) -> dict[str, float]:
    names = [each.method.name for each in collected.estimators]
    return dict(zip(names, values.tolist(), strict=True))


def second_moments(n: int) -> dict[str, float]:
    """E||Y||^2 for orthogonal unit gradients of n tokens, by summing over counts."""
    counts = np.arange(1, n + 1)
    weights = np.array([objective_weight(count, n, ELBO, EPS) for count in counts])  # a_l
    roots = weights * np.sqrt(counts)  # a_l sqrt(E||sum over S||^2)
    return {
        "standard": math.log(1 / EPS) / (1 - EPS) / n,
        "exact": float(np.sum(counts * weights**2)) / n,
        "exact+p_pots": float(roots.sum() / n) ** 2,  # of the best q
        "p_pots_gradient+rate": (2 * (1 - math.sqrt(EPS)) / (1 - EPS)) ** 2 / n,  # of the best p
    }


@pytest.mark.parametrize(
    ("n", "table"),
    [
        (4, {"exact": 3.3, "exact+p_pots": 3.6, "p_pots_gradient+rate": 1.84}),
        (12, {"exact": 2.2, "exact+p_pots": 2.6, "p_pots_gradient+rate": 1.84}),
    ],
)
def test_second_moments_are_those_of_the_closed_forms(n: int, table: dict[str, float], ranks: Ranks) -> None:
    truth = second_moments(n)
    for name, ratio in table.items():
        assert truth["standard"] / truth[name] == pytest.approx(ratio, rel=0.03)
    names = [*table, "independent+rate"]
    collected, _ = measured(Toy(np.ones(n)), ToySource(n), ranks, names, samples=144)
    second = by_name(collected, collected.waves.second[:, :, GRADIENT].mean(axis=0))
    for name, value in truth.items():
        # a probe finds the best density up to its cells, its share of the uniform one and its noise
        assert second[name] == pytest.approx(value, rel=0.08), name
    variances = compute_variances(collected)
    variance = by_name(collected, variances.variance[0, :, GRADIENT])
    signal = interval(variances.signal[:, GRADIENT])
    assert signal.low < 1 / n < signal.high
    assert variance["exact"] == pytest.approx(truth["exact"] - 1 / n, rel=0.15)
    # All samples are the same: a second row of one sample is worth a row of another one.
    assert variance["independent+rate"] == pytest.approx(variance["standard"], rel=0.2)


@cache
def of_slopes(ranks: Ranks) -> Collected:
    """A toy whose losses grow with the mask, on samples of three kinds: A, B and C are all above 0."""
    names = ["mirror", "stratified", "low_discrepancy", "exact_pair", "exact_4"]
    toy = Toy(SCALES, SLOPE)
    return measured(toy, ToySource(LENGTH, KINDS), ranks, names, samples=384, eps=0.05)[0]


def gradients(noised_weights: np.ndarray, masks: np.ndarray, kind: int) -> np.ndarray:
    """The gradient of a draw [KINDS, LENGTH], computed without the toy."""
    factors = SCALES.reshape(KINDS, LENGTH)[kind] * (1 + SLOPE * masks.mean(axis=1, keepdims=True))
    whole = np.zeros((KINDS, LENGTH))
    whole[kind] = np.sum(noised_weights * factors, axis=0)
    return whole


def batch_variance(collected: Collected, name: str, size: int, num_batches: int) -> float:
    """Rows times the trace of the covariance of a batch's mean, from whole batches as training draws them."""
    (estimator,) = [each for each in collected.estimators if each.method.name == name]
    rng, source, means = np.random.default_rng(1), ToySource(LENGTH, KINDS), []
    for batch in range(num_batches):
        total = np.zeros((KINDS, LENGTH))
        for index in range(batch * size, (batch + 1) * size):
            sample = source.train_sample(index)
            uniforms = rng.random((estimator.noise.corruption.num_uniforms, LENGTH))
            noised = noise_sample(sample, estimator.t_sampler.draw(index), uniforms, estimator.noise)
            total += gradients(noised.weights, noised.masks, int(sample.token_ids[0]) // LENGTH) / size
        means.append(total.ravel())
    return size * estimator.rows * float(np.var(means, axis=0, ddof=1).sum())


@pytest.mark.parametrize(
    ("name", "size"),
    [("standard", 8), ("stratified", 8), ("low_discrepancy", 8), ("mirror", 4), ("exact_4", 2)],
)
def test_a_method_s_variance_is_that_of_whole_batches(name: str, size: int, ranks: Ranks) -> None:
    collected = of_slopes(ranks)
    found = by_name(collected, compute_variances(collected).variance[0, :, GRADIENT])[name]
    assert found == pytest.approx(batch_variance(collected, name, size, 3200 // size), rel=0.2)


def test_strata_and_pairs_help_in_the_toy(ranks: Ranks) -> None:
    """Otherwise the agreement above would prove little."""
    collected = of_slopes(ranks)
    of_methods = ratios(compute_variances(collected).variance[:, :, GRADIENT])
    found = dict(zip([each.method.name for each in collected.estimators], of_methods, strict=True))
    assert found["standard"].value == found["standard"].low == 1
    assert found["exact_pair"].low > 1.1 and found["stratified"].low > 1 and found["exact_4"].high < 0.9
    for ratio in of_methods[1:]:
        assert ratio.sure_low < ratio.low < ratio.value < ratio.high


def test_a_b_and_c_meet_their_closed_forms(ranks: Ranks) -> None:
    """For Y = sum_i m_i c_i (1 + s k / n) / (n r), with k the number of masked tokens of n."""
    t = (np.arange(4000) + 0.5) / 4000
    r, n, s = mask_rate(t, 0.05), LENGTH, SLOPE
    first = 1 + s * ((n - 1) * r + 1) / n  # E (1 + s k / n) given that token i is masked
    k_second = ((n - 1) * r * (1 - r) + ((n - 1) * r + 1) ** 2) / n**2
    second = 1 + 2 * s * ((n - 1) * r + 1) / n + s**2 * k_second  # E (1 + s k / n)^2
    norms = np.sum(SCALES.reshape(KINDS, LENGTH) ** 2, axis=1) / n**2  # [kinds], sum c_i^2 / n^2
    overall = np.mean(norms) / KINDS  # kinds have different parameters
    truth = {
        "A": norms.mean() * np.mean(second / r - first**2),
        "B": norms.mean() * (np.mean(first**2) - np.mean(first) ** 2),
        "C": (norms.mean() - overall) * np.mean(first) ** 2,
    }
    parts = compute_variances(of_slopes(ranks)).parts[:, :, GRADIENT]
    for place, (name, value) in enumerate(truth.items()):
        found = interval(parts[:, place])
        assert found.low - 0.1 * abs(value) < value < found.high + 0.1 * abs(value), name
    assert parts[0].sum() == pytest.approx(sum(truth.values()), rel=0.1)


def test_adam_weighs_every_parameter_by_its_second_moment(ranks: Ranks) -> None:
    """Where one scale is ten times the others, it makes the raw trace. Under Adam all count alike."""
    scales = np.array([10.0, 1.0, 1.0, 1.0])
    collected, measurer = measured(Toy(scales), ToySource(4), ranks, ["exact"], samples=200, batch_rows=2)
    found = compute_variances(collected).variance[0]
    per_parameter = found[:, GRADIENT] / np.sum(scales**2)  # the same for each, in units of its scale
    moments = scales**2 * (1 / 16 + per_parameter[0] / 2)  # G^2 = 1 / 16 and a batch of 2
    damped = moments + DAMPING * moments.mean()
    expected = np.outer(per_parameter, scales**2 / damped).sum(axis=1)
    assert found[:, ADAM] == pytest.approx(expected, rel=0.25)
    assert len(measurer.metric.inverse) == 5 and measurer.metric.inverse[-1] == 0


def test_the_metric_is_that_of_a_batch() -> None:
    rng = np.random.default_rng(0)
    draws = torch.from_numpy(rng.normal([1.0, 0.0, 0.0, 9.0], [0.5, 2.0, 0.0, 1.0], (4000, 4))).float()
    metric = adam_metric(draws.square().mean(dim=0), draws.mean(dim=0), 4000, 5, sizes=[2, 1])
    moments = np.array([1 + 0.25 / 5, 4 / 5])
    expected = 1 / (moments + DAMPING * moments.mean())
    assert metric.inverse.numpy() == pytest.approx([*expected, 0, 0], rel=0.1)
    ones, others = torch.randn(2, 4), torch.randn(3, 4)
    products = metric.products(ones, others)
    assert products[1, 2] == pytest.approx(
        [
            float(ones[1, 3] * others[2, 3]),
            float(ones[1, :3] @ others[2, :3]),
            float((ones[1] * others[2] * metric.inverse).sum()),
        ],
        rel=1e-4,
    )


def test_group_sums_have_the_products_of_their_vectors(ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mdmscale.analysis.variance.sums.CHUNK", 4)
    metric = adam_metric(torch.rand(11) + 1, torch.zeros(11), 10, 1, sizes=[10])
    sums = GroupSums(3, 2, 11, ranks)
    vectors = torch.randn(6, 2, 11)
    for place, each in enumerate(vectors):
        sums.add(place % 3, each)
    totals = vectors.reshape(2, 3, 2, 11).sum(dim=0)  # [groups, vectors, width]
    found = sums.products(metric)
    for vector in range(2):
        expected = metric.products(totals[:, vector], totals[:, vector])
        assert found[vector] == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_leaving_out_a_group_is_measuring_without_it(ranks: Ranks) -> None:
    collected = of_slopes(ranks)
    variances = compute_variances(collected)
    kept = collected.groups != 5
    places = [group for group in range(12) if group != 5]
    waves = collected.waves
    part = replace(waves, **{field.name: getattr(waves, field.name)[kept] for field in fields(waves)})
    groups = np.array([places.index(group) for group in collected.groups[kept]])
    products = collected.products[:, places][:, :, places]
    again = compute_variances(replace(collected, groups=groups, waves=part, products=products))
    assert again.variance[0] == pytest.approx(variances.variance[6])
    assert again.parts[0] == pytest.approx(variances.parts[6])


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    values = rng.exponential(size=(400, 12, 40))
    held = {1: 0, 20: 0}
    for each in values:
        means = [each.mean(), *(np.delete(each, group, axis=0).mean() for group in range(12))]
        for comparisons in held:
            found = interval(np.array(means), comparisons)
            held[comparisons] += found.low < 1 < found.high
    assert 0.91 < held[1] / 400 < 0.98
    assert held[20] / 400 > 0.99


def test_the_noise_scale_is_the_batch_at_which_noise_equals_signal() -> None:
    rng = np.random.default_rng(0)
    variance, parts = np.full((13, 1, 3), 6.0), np.zeros((13, 3, 3))
    signal = 2 + 0.01 * rng.normal(size=(13, 3))
    found = noise_scale(Variances(variance, parts, signal), GRADIENT)
    assert found is not None and found.low < found.value < found.high
    assert found.value == pytest.approx(3, rel=0.05)
    assert noise_scale(Variances(variance, parts, signal - 2), GRADIENT) is None


def test_curves_are_means_in_cells_of_t(ranks: Ranks) -> None:
    found = curves(of_slopes(ranks).waves.draws.reshape(-1, 5), TABLE_EDGES)
    assert len(found["t"]) == len(TABLE_EDGES) - 1
    n, last = LENGTH, len(TABLE_EDGES) - 2
    r = mask_rate((TABLE_EDGES[last] + TABLE_EDGES[last + 1]) / 2, 0.05)
    loss = SCALES.mean() * (1 + SLOPE * ((n - 1) * r + 1) / n)
    assert found["g"][last] == pytest.approx(loss, rel=0.1)
    assert found["grad_second_moment"][0] > 3 * found["grad_second_moment"][last]
    empty = curves(np.array([[0.55, 2.0, 3.0, 4.0, 0.5]]), TABLE_EDGES)
    assert empty["g"].count(None) == last and 1.0 in empty["g"]
