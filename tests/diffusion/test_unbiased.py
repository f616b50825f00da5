"""The estimators with a real model and head, and the options that change the objective."""

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
from diffusion.enumeration import (
    EPS,
    SKEWED,
    CrossEntropies,
    expectation,
    expectation_at,
    loss,
    make_noise,
    objective_at,
)
from diffusion.enumeration import objective as objective_of
from diffusion.tiny_model import make_model

from mdmscale.config.diffusion import DiffusionSection
from mdmscale.data.collate import Collator
from mdmscale.diffusion.density import DensityTable
from mdmscale.diffusion.levels import Levels
from mdmscale.diffusion.loss_weight import ELBO
from mdmscale.diffusion.maskings import CORRUPTIONS
from mdmscale.diffusion.noise import Noise, NoisedSample, noise_sample
from mdmscale.diffusion.objective import token_share
from mdmscale.diffusion.sample import Sample
from mdmscale.diffusion.schedule import mask_rate
from mdmscale.models.mdm import MaskedDiffusionModel

LENGTH, MASK_ID = 7, 15
TOKENS = np.array([3, 1, 4, 1, 5, 9, 2])
ELIGIBLE = np.array([False, True, True, False, True, True, True])
SAMPLE = Sample(TOKENS, ELIGIBLE)
DELIMITERS = np.isin(np.arange(16), [1, 9])  # three of the sample's tokens, one of them in the prompt
MASKINGS = list(CORRUPTIONS)
WITH_RATES = [name for name, corruption in CORRUPTIONS.items() if corruption.takes_extra_rates]


def isad_noise(**options: Any) -> Noise:
    return Noise(DiffusionSection(eps=EPS, isad={"tokens": [1, 9], "delta": 0.2}, **options), DELIMITERS)


@pytest.fixture(scope="module")
def model() -> MaskedDiffusionModel:
    return make_model(vocab_size=16, head_chunk_size=5)


def batch_loss(model: MaskedDiffusionModel, sample: NoisedSample) -> float:
    """The loss of one noised sample, computed as in training."""
    batch = Collator(MASK_ID)([sample])
    _, losses, _ = model(**batch.model_inputs)
    return float(batch.sum_by_draw(batch.weights.double() * losses).sum())


def table_of(model: MaskedDiffusionModel, sample: Sample) -> CrossEntropies:
    """The cross-entropies of the real model and head for every mask of the sample, prompt included."""
    table, length = {}, len(sample.token_ids)
    for bits in product([False, True], repeat=length):
        mask = np.array(bits)[None]
        noised = NoisedSample(sample.token_ids, mask, mask.astype(float), length, np.array([0.5]), np.ones(1))
        batch = Collator(MASK_ID)([noised])
        values = np.zeros(length)
        values[mask[0]] = model(**batch.model_inputs)[1].double().numpy()
        table[bits] = values
    return table


@pytest.fixture(scope="module")
def cross_entropies(model: MaskedDiffusionModel) -> CrossEntropies:
    return table_of(model, SAMPLE)


@pytest.fixture(scope="module")
def objective(cross_entropies: CrossEntropies) -> float:
    value = objective_of(ELBO, cross_entropies, SAMPLE)
    assert value > 1, "a trivial objective would prove nothing"
    return value


@pytest.mark.parametrize("masking", [name for name in MASKINGS if CORRUPTIONS[name].draws_counts])
def test_exact_counts_have_the_objective_as_expectation(masking: str, model: MaskedDiffusionModel) -> None:
    """Of four tokens, as all orders are enumerated; test_estimators.py has the other combinations."""
    sample = Sample(TOKENS[:4], np.array([True, True, True, False]))
    table = table_of(model, sample)
    found = expectation(make_noise(masking=masking), SKEWED, table, sample)
    assert found == pytest.approx(objective_of(ELBO, table, sample), rel=1e-12)


@pytest.mark.parametrize("masking", [name for name in MASKINGS if not CORRUPTIONS[name].draws_counts])
def test_expectation_is_the_objective(
    masking: str, cross_entropies: CrossEntropies, objective: float
) -> None:
    """This also holds for complement pairs, under any p: with t ~ p both rows have the weight 1 / p(t)."""
    found = expectation(make_noise(masking=masking), SKEWED, cross_entropies, SAMPLE)
    assert found == pytest.approx(objective, rel=1e-12)


def test_a_window_of_t_has_another_expectation(cross_entropies: CrossEntropies, objective: float) -> None:
    noise = make_noise(loss_weight="window")
    density, loss_weight = DensityTable.uniform(0.3, 0.8), noise.options.initial_loss_weight
    found = expectation(noise, density, cross_entropies, SAMPLE, loss_weight)
    assert abs(found - objective) > 1e-3
    assert found == pytest.approx(objective_of(loss_weight, cross_entropies, SAMPLE), rel=1e-12)


@pytest.mark.parametrize("extra", [0.0, 1.0])
def test_syrm_has_another_expectation(
    extra: float, cross_entropies: CrossEntropies, objective: float
) -> None:
    options = DiffusionSection(eps=EPS, syrm={"tokens": [3], "extra": extra})
    noise = Noise(options, structural=np.arange(16) == 3)
    widened = noise.widened(SAMPLE, seed=0, index=0)
    assert widened.eligible.sum() == ELIGIBLE.sum() + (2 if extra else 1)
    assert abs(objective_of(ELBO, cross_entropies, widened) - objective) > 1e-3


@pytest.mark.parametrize("masking", WITH_RATES)
def test_isad_keeps_every_token_s_weight_but_shifts_the_contexts(
    masking: str, cross_entropies: CrossEntropies, objective: float
) -> None:
    """Exact if a token's cross-entropy does not depend on other masks. With a real model there is a shift."""
    noise = isad_noise(masking=masking)
    alone = {bits: np.array(bits) * np.arange(1.0, LENGTH + 1) for bits in cross_entropies}
    for t in (0.05, 0.5, 0.9):
        expected = objective_at(t, alone, SAMPLE)
        assert expectation_at(t, noise, alone, SAMPLE) == pytest.approx(expected, rel=1e-12)
    assert abs(expectation(noise, SKEWED, cross_entropies, SAMPLE) - objective) > 1e-4


@pytest.mark.parametrize("make", [make_noise, isad_noise])
def test_the_training_path_computes_the_estimator(
    make: Callable[..., Noise], model: MaskedDiffusionModel, cross_entropies: CrossEntropies
) -> None:
    """Collator, pair rows, head and per-sample sums give what the enumeration above assumes."""
    rng = np.random.default_rng(0)
    for masking in MASKINGS if make is make_noise else WITH_RATES:
        noise = make(masking=masking)
        for u in (0.05, 0.4, 0.9):
            levels = Levels(np.full(noise.corruption.num_t(LENGTH), u), SKEWED)
            noised = noise_sample(SAMPLE, levels, rng.random((noise.corruption.num_uniforms, LENGTH)), noise)
            assert batch_loss(model, noised) == pytest.approx(loss(noised, cross_entropies), rel=1e-6)


def test_weights_by_hand() -> None:
    """A delimiter's cross-entropy is divided by its own rate, others by r; all by n and number of rows."""
    uniforms = np.full(LENGTH, 0.3)
    density = DensityTable(np.array([0.0, 0.7, 1.0]), np.array([1 / 3, (1 - 0.7 / 3) / 0.3]))
    noised = noise_sample(
        SAMPLE, Levels(np.array([0.4 / 3]), density), uniforms, isad_noise(masking="mirror")
    )
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
    noise = make_noise(masking=masking, weights="rate")
    mean, second = (expectation_at(t, noise, table, SAMPLE, moment=moment) for moment in (1, 2))
    variance = second - mean**2
    single = s * (1 - r) / r
    pair = s * (1 - 2 * r) / (2 * r) if r <= 0.5 else s * (2 * r - 1) * (1 - r) / (2 * r**2)
    assert variance == pytest.approx(single if masking == "bernoulli" else pair, abs=1e-9)


def test_a_complement_pair_leaves_no_token_out_and_none_twice() -> None:
    """For any t every eligible position is masked in exactly one row, up to eps."""
    rng = np.random.default_rng(0)
    noise = Noise(DiffusionSection(eps=1e-12, masking="complement"))
    for t in rng.random(50):
        masks = noise_sample(SAMPLE, Levels.at(t), rng.random(LENGTH), noise).masks
        assert masks.sum(axis=0).tolist() == ELIGIBLE.astype(int).tolist()


def test_token_normalisation_weighs_every_eligible_token_alike() -> None:
    """For two samples with 2 and 6 eligible tokens the batch loss is sum(n l) / sum(n)."""
    losses, counts = np.array([3.0, 1.0]), np.array([2, 6])
    by_sample, by_token = (
        np.array([token_share(int(n), normalization) for n in counts])
        for normalization in ("sample", "token")
    )
    scale = 1 / counts.mean()
    sums = losses / by_sample  # the cross-entropies that give these per-sample losses
    assert np.mean(sums * by_token * scale) == pytest.approx(np.average(losses, weights=counts))
