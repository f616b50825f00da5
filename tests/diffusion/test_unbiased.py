"""Exact expectations: all masks of a short sequence are enumerated, and t is integrated exactly per cell."""

from collections.abc import Callable
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
from diffusion.tiny_model import make_model
from numpy.polynomial.legendre import leggauss

from mdmscale.config.diffusion import DiffusionSection
from mdmscale.data.collate import Collator
from mdmscale.diffusion.corruption import CORRUPTIONS, BernoulliMasks, Draw
from mdmscale.diffusion.density import DensityTable
from mdmscale.diffusion.noise import Noise, NoisedSample, noise_sample
from mdmscale.diffusion.objective import position_weight, token_share
from mdmscale.diffusion.sample import Sample
from mdmscale.diffusion.schedule import mask_rate
from mdmscale.models.mdm import MaskedDiffusionModel

LENGTH, MASK_ID, EPS = 7, 15, 1e-3
TOKENS = np.array([3, 1, 4, 1, 5, 9, 2])
ELIGIBLE = np.array([False, True, True, False, True, True, True])
SAMPLE = Sample(TOKENS, ELIGIBLE)
SKEWED = DensityTable.from_weights(np.array([0, 0.01, 0.1, 0.4, 0.75, 1]), np.array([9, 4, 1, 0.0, 2]), 0.05)
DELIMITERS = np.isin(np.arange(16), [1, 9])  # three of the sample's tokens, one of them in the prompt
MASKINGS = list(CORRUPTIONS)

CrossEntropies = dict[tuple[bool, ...], np.ndarray]
"""Cross-entropy of each masked position, float64 [length], under each mask."""


def make_noise(**options: Any) -> Noise:
    return Noise(DiffusionSection(eps=EPS, **options))


def isad_noise(**options: Any) -> Noise:
    return Noise(DiffusionSection(eps=EPS, isad={"tokens": [1, 9], "delta": 0.2}, **options), DELIMITERS)


@pytest.fixture(scope="module")
def model() -> MaskedDiffusionModel:
    return make_model(vocab_size=16, head_chunk_size=5)


def batch_loss(model: MaskedDiffusionModel, sample: NoisedSample) -> float:
    """The loss of one noised sample, computed as in training."""
    batch = Collator(MASK_ID)([sample])
    _, losses, _ = model(**batch.model_inputs)
    return float(batch.sum_by_draw(batch.weights.double() * losses)[0])


@pytest.fixture(scope="module")
def cross_entropies(model: MaskedDiffusionModel) -> CrossEntropies:
    """The cross-entropies of the real model and head for every mask of the sample, prompt included."""
    table = {}
    for bits in product([False, True], repeat=LENGTH):
        mask = np.array(bits)[None]
        noised = NoisedSample(TOKENS, mask, mask.astype(float), LENGTH, np.array([0.5]), np.ones(1))
        batch = Collator(MASK_ID)([noised])
        values = np.zeros(LENGTH)
        values[mask[0]] = model(**batch.model_inputs)[1].double().numpy()
        table[bits] = values
    return table


def objective_at(t: float, table: CrossEntropies) -> float:
    """E_m l(x, t, m), enumerated from the definition."""
    rate, places = (1 - EPS) * t + EPS, np.flatnonzero(ELIGIBLE)
    total = 0.0
    for bits in product([False, True], repeat=len(places)):
        mask = np.zeros(LENGTH, dtype=bool)
        mask[places] = bits
        probability = rate ** sum(bits) * (1 - rate) ** (len(bits) - sum(bits))
        total += probability * table[tuple(mask.tolist())].sum() / rate
    return total / len(places)


def estimator_at(
    noise: Noise,
    t: float,
    weight: float,
    table: CrossEntropies,
    moment: int = 1,
    sample: Sample = SAMPLE,
) -> float:
    """The expectation over uniforms of the estimator (or its power), with noise_sample.

    A position's rates r, r' cut [0, 1) at r and 1 - r' into at most three pieces. Its masks are constant on
    each piece, so one uniform per piece is enough.
    """
    corruption = noise.corruption
    assert isinstance(corruption, BernoulliMasks)
    draw = Draw(
        np.array([t]), np.ones(1), np.zeros(LENGTH), sample.eligible, 1.0, EPS, noise.extra_rates(sample)
    )
    rates = corruption.rates(draw)
    places = np.flatnonzero(sample.eligible)
    pieces = []
    for place in places:
        cuts = np.unique([0.0, rates[0, place], 1 - rates[-1, place], 1.0])
        pieces.append([(low, high) for low, high in pairwise(cuts) if high > low])
    total = 0.0
    for choice in product(*pieces):
        uniforms = np.zeros(LENGTH)
        uniforms[places] = [(low + high) / 2 for low, high in choice]
        noised = noise_sample(sample, t, weight, uniforms, noise)
        rows = zip(noised.masks, noised.weights, strict=True)
        value = sum(float(weights @ table[tuple(mask.tolist())]) for mask, weights in rows)
        total += np.prod([high - low for low, high in choice]) * value**moment
    return float(total)


def integrate_u(density: DensityTable, function: Callable[[float, float], float]) -> float:
    """int_0^1 f(t(u), weight(u)) du by Gauss-Legendre per cell; exact because f is a polynomial there."""
    cumulative = np.concatenate([[0], np.cumsum(density.density * np.diff(density.edges))])
    nodes, node_weights = leggauss(4)
    total = 0.0
    for low, high in pairwise(cumulative):
        for node, node_weight in zip(nodes, node_weights, strict=True):
            u = low + (high - low) * (node + 1) / 2
            total += node_weight / 2 * (high - low) * function(*density.draw(u))
    return total


@pytest.fixture(scope="module")
def objective(cross_entropies: CrossEntropies) -> float:
    value = integrate_u(DensityTable.uniform(), lambda t, _: objective_at(t, cross_entropies))
    assert value > 1, "a trivial objective would prove nothing"
    return value


@pytest.mark.parametrize("masking", MASKINGS)
@pytest.mark.parametrize("density", [DensityTable.uniform(), SKEWED], ids=["uniform", "p_pots"])
def test_expectation_is_the_objective(
    masking: str, density: DensityTable, cross_entropies: CrossEntropies, objective: float
) -> None:
    """This also holds for complement pairs, under any p: with t ~ p both rows have the weight 1 / p(t)."""
    noise = make_noise(masking=masking)
    estimate = integrate_u(density, lambda t, weight: estimator_at(noise, t, weight, cross_entropies))
    assert estimate == pytest.approx(objective, abs=1e-6)


def test_a_clipped_t_has_another_expectation(cross_entropies: CrossEntropies, objective: float) -> None:
    noise = make_noise(t_sampler="clipped")
    low, high = noise.options.t_range
    clipped = integrate_u(
        DensityTable.uniform(), lambda u, _: estimator_at(noise, low + (high - low) * u, 1.0, cross_entropies)
    )
    assert abs(clipped - objective) > 1e-3


@pytest.mark.parametrize("extra", [0.0, 1.0])
def test_syrm_has_another_expectation(
    extra: float, cross_entropies: CrossEntropies, objective: float
) -> None:
    options = DiffusionSection(eps=EPS, syrm={"tokens": [3], "extra": extra})
    noise = Noise(options, structural=np.arange(16) == 3)
    widened = noise.widened(SAMPLE, seed=0, index=0)
    assert widened.eligible.sum() == ELIGIBLE.sum() + (2 if extra else 1)
    estimate = integrate_u(
        DensityTable.uniform(),
        lambda t, weight: estimator_at(noise, t, weight, cross_entropies, sample=widened),
    )
    assert abs(estimate - objective) > 1e-3


@pytest.mark.parametrize("masking", MASKINGS)
def test_isad_keeps_every_token_s_weight_but_shifts_the_contexts(
    masking: str, cross_entropies: CrossEntropies, objective: float
) -> None:
    """Exact if a token's cross-entropy does not depend on other masks. With a real model there is a shift."""
    noise = isad_noise(masking=masking)
    alone = {bits: np.array(bits) * np.arange(1.0, LENGTH + 1) for bits in cross_entropies}
    for t in (0.05, 0.5, 0.9):
        assert estimator_at(noise, t, 1.0, alone) == pytest.approx(objective_at(t, alone), abs=1e-9)
    estimate = integrate_u(SKEWED, lambda t, weight: estimator_at(noise, t, weight, cross_entropies))
    assert abs(estimate - objective) > 1e-4


@pytest.mark.parametrize("make", [make_noise, isad_noise])
def test_the_training_path_computes_the_estimator(
    make: Callable[..., Noise], model: MaskedDiffusionModel, cross_entropies: CrossEntropies
) -> None:
    """Collator, pair rows, head and per-sample sums give what the enumeration above assumes."""
    rng = np.random.default_rng(0)
    for masking in MASKINGS:
        for t in (0.05, 0.4, 0.9):
            noised = noise_sample(SAMPLE, t, 3.0, rng.random(LENGTH), make(masking=masking))
            rows = zip(noised.masks, noised.weights, strict=True)
            expected = sum(float(weights @ cross_entropies[tuple(mask.tolist())]) for mask, weights in rows)
            assert batch_loss(model, noised) == pytest.approx(expected, rel=1e-6)


def test_weights_by_hand() -> None:
    """A delimiter's cross-entropy is divided by its own rate, others by r; all by n and number of rows."""
    uniforms = np.full(LENGTH, 0.3)
    noised = noise_sample(SAMPLE, 0.4, 3.0, uniforms, isad_noise(masking="mirror"))
    rate = mask_rate(0.4, EPS)
    first = np.where(DELIMITERS[TOKENS], 3.0 / (2 * 5 * (rate + 0.2)), 3.0 / (2 * 5 * rate)) * ELIGIBLE
    assert noised.weights[0] == pytest.approx(first)
    assert not noised.masks[1].any(), "0.3 is below 1 - r and 1 - (r + delta)"


@pytest.mark.parametrize("t", [0.1, 0.3, 0.5, 0.7, 0.95])
@pytest.mark.parametrize("masking", ["bernoulli", "mirror"])
def test_variance_has_its_closed_form_where_cross_entropy_ignores_the_mask(masking: str, t: float) -> None:
    """One draw: s (1-r)/r. A pair: s (1-2r)/2r up to r = 1/2, s (2r-1)(1-r)/2r^2 above."""
    c = np.array([0, 1.0, 2.0, 0, 0.5, 3.0, 1.5])
    table = {bits: c * np.array(bits) for bits in product([False, True], repeat=LENGTH)}
    r, s = mask_rate(t, EPS), float(c @ c) / 5**2
    noise = make_noise(masking=masking)
    variance = estimator_at(noise, t, 1.0, table, moment=2) - estimator_at(noise, t, 1.0, table) ** 2
    single = s * (1 - r) / r
    pair = s * (1 - 2 * r) / (2 * r) if r <= 0.5 else s * (2 * r - 1) * (1 - r) / (2 * r**2)
    assert variance == pytest.approx(single if masking == "bernoulli" else pair, abs=1e-9)


def test_a_complement_pair_leaves_no_token_out_and_none_twice() -> None:
    """For any t every eligible position is masked in exactly one row, up to eps."""
    rng = np.random.default_rng(0)
    noise = Noise(DiffusionSection(eps=1e-12, masking="complement"))
    for t in rng.random(50):
        masks = noise_sample(SAMPLE, float(t), 1.0, rng.random(LENGTH), noise).masks
        assert masks.sum(axis=0).tolist() == ELIGIBLE.astype(int).tolist()


def test_token_normalisation_weighs_every_eligible_token_alike() -> None:
    """For two samples with 2 and 6 eligible tokens the batch loss is sum(n l) / sum(n)."""
    losses, counts, rate = np.array([3.0, 1.0]), np.array([2, 6]), 0.5
    rates = np.array(rate)
    by_sample, by_token = (
        [position_weight(token_share(int(n), normalization), 1.0, rates, 1) for n in counts]
        for normalization in ("sample", "token")
    )
    scale = 1 / counts.mean()
    sums = losses / np.array(by_sample)  # the cross-entropies that give these per-sample losses
    assert np.mean(sums * by_token * scale) == pytest.approx(np.average(losses, weights=counts))
