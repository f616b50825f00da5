"""Exact expectations: all masks of a small sequence enumerated, t integrated exactly over each cell."""

from itertools import pairwise, product
from typing import Literal

import numpy as np
import pytest
import torch
from numpy.polynomial.legendre import leggauss
from transformers import LlamaConfig, LlamaForCausalLM

from mdmscale.data.collate import NoisedSample, collate
from mdmscale.diffusion.density import DensityTable
from mdmscale.diffusion.masking import draw_masks
from mdmscale.diffusion.objective import mask_rate, per_sample, position_weight
from mdmscale.models.mdm import MaskedDiffusionModel

LENGTH, MASK_ID, EPS = 7, 15, 1e-3
TOKENS = np.array([3, 1, 4, 1, 5, 9, 2])
ELIGIBLE = np.array([False, True, True, False, True, True, True])
SKEWED = DensityTable.from_weights(np.array([0, 0.01, 0.1, 0.4, 0.75, 1]), np.array([9, 4, 1, 0.0, 2]), 0.05)
Masking = Literal["bernoulli", "mirror"]


@pytest.fixture(scope="module")
def model() -> MaskedDiffusionModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        is_causal=False,
    )
    config.initializer_range = 0.5
    return MaskedDiffusionModel(
        LlamaForCausalLM(config).double().eval(), logit_shift=False, head_chunk_size=5
    )


def batch_loss(model: MaskedDiffusionModel, masks: np.ndarray, weight: float) -> float:
    """The training path: masks [copies, length] of one sample to its loss."""
    batch = collate([NoisedSample(TOKENS, masks, weight, int(ELIGIBLE.sum()))], MASK_ID)
    inputs = batch.model_inputs
    inputs["weights"] = batch.weights.double()
    _, losses, _ = model(**inputs)
    return float(per_sample(inputs["weights"] * losses, batch.sample_of, 1)[0])


@pytest.fixture(scope="module")
def mean_cross_entropy(model: MaskedDiffusionModel) -> dict[tuple[bool, ...], float]:
    """Sum of cross-entropies under each possible mask, by the real model and head."""
    masks = [np.array(bits) & ELIGIBLE for bits in product([False, True], repeat=LENGTH)]
    return {tuple(mask.tolist()): batch_loss(model, mask[None], 1.0) for mask in masks}


def objective_at(t: float, table: dict[tuple[bool, ...], float]) -> float:
    """E_m l(x, t, m) from the definition, by plain enumeration."""
    rate, places = (1 - EPS) * t + EPS, np.flatnonzero(ELIGIBLE)
    total = 0.0
    for bits in product([False, True], repeat=len(places)):
        mask = np.zeros(LENGTH, dtype=bool)
        mask[places] = bits
        total += (
            rate ** sum(bits) * (1 - rate) ** (len(bits) - sum(bits)) * table[tuple(mask.tolist())] / rate
        )
    return total / len(places)


def estimator_at(
    masking: Masking, t: float, weight: float, table: dict[tuple[bool, ...], float], moment: int = 1
) -> float:
    """E over uniforms of the estimator (or its power), through draw_masks.

    r and 1 - r cut [0, 1) into at most three pieces on which the masks do not change; one uniform of each
    piece stands for all.
    """
    rate = mask_rate(t, EPS)
    cuts = np.unique([0.0, rate, 1 - rate, 1.0])
    pieces = [(low, high) for low, high in pairwise(cuts) if high > low]
    places = np.flatnonzero(ELIGIBLE)
    total = 0.0
    for choice in product(pieces, repeat=len(places)):
        uniforms = np.zeros(LENGTH)
        uniforms[places] = [(low + high) / 2 for low, high in choice]
        masks = draw_masks(masking, uniforms, ELIGIBLE, rate)
        position = position_weight(len(places), rate, weight, len(masks), "sample")
        value = position * sum(table[tuple(mask.tolist())] for mask in masks)
        total += np.prod([high - low for low, high in choice]) * value**moment
    return float(total)


def integrate_u(density: DensityTable, function: object) -> float:
    """int_0^1 f(t(u), weight(u)) du by Gauss-Legendre in each cell: exact, for f is a polynomial there."""
    cumulative = np.concatenate([[0], np.cumsum(density.density * np.diff(density.edges))])
    nodes, node_weights = leggauss(4)
    total = 0.0
    for low, high in pairwise(cumulative):
        for node, node_weight in zip(nodes, node_weights, strict=True):
            u = low + (high - low) * (node + 1) / 2
            total += node_weight / 2 * (high - low) * function(*density.draw(u))  # type: ignore[operator]
    return total


@pytest.mark.parametrize("masking", ["bernoulli", "mirror"])
@pytest.mark.parametrize("density", [DensityTable.uniform(), SKEWED], ids=["uniform", "p_pots"])
def test_expectation_is_the_objective(
    masking: Masking, density: DensityTable, mean_cross_entropy: dict[tuple[bool, ...], float]
) -> None:
    objective = integrate_u(DensityTable.uniform(), lambda t, _: objective_at(t, mean_cross_entropy))
    estimate = integrate_u(density, lambda t, weight: estimator_at(masking, t, weight, mean_cross_entropy))
    assert estimate == pytest.approx(objective, abs=1e-6)
    assert objective > 1, "a trivial objective would prove nothing"


def test_the_training_path_computes_the_estimator(
    model: MaskedDiffusionModel, mean_cross_entropy: dict[tuple[bool, ...], float]
) -> None:
    """Collate, pair rows, head and per-sample sums give what the enumeration above assumes."""
    rng = np.random.default_rng(0)
    for t in (0.05, 0.4, 0.9):
        rate = mask_rate(t, EPS)
        masks = draw_masks("mirror", rng.random(LENGTH), ELIGIBLE, rate)
        weight = position_weight(5, rate, 3.0, 2, "sample")
        expected = 3.0 / (2 * 5 * rate) * sum(mean_cross_entropy[tuple(mask.tolist())] for mask in masks)
        assert batch_loss(model, masks, weight) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("t", [0.1, 0.3, 0.5, 0.7, 0.95])
@pytest.mark.parametrize("masking", ["bernoulli", "mirror"])
def test_variance_has_its_closed_form_where_cross_entropy_ignores_the_mask(
    masking: Masking, t: float
) -> None:
    """One draw: s (1-r)/r. A pair: s (1-2r)/2r up to r = 1/2, s (2r-1)(1-r)/2r^2 above."""
    c = np.array([0, 1.0, 2.0, 0, 0.5, 3.0, 1.5])
    table = {bits: float(c @ np.array(bits)) for bits in product([False, True], repeat=LENGTH)}
    r, s = mask_rate(t, EPS), float(c @ c) / 5**2
    variance = estimator_at(masking, t, 1.0, table, moment=2) - estimator_at(masking, t, 1.0, table) ** 2
    single = s * (1 - r) / r
    pair = s * (1 - 2 * r) / (2 * r) if r <= 0.5 else s * (2 * r - 1) * (1 - r) / (2 * r**2)
    assert variance == pytest.approx(single if masking == "bernoulli" else pair, abs=1e-9)


def test_token_normalisation_weighs_every_eligible_token_alike() -> None:
    """Two samples of 2 and 6 eligible tokens: the batch loss is sum of n l over the sum of n."""
    losses, counts, rate = np.array([3.0, 1.0]), np.array([2, 6]), 0.5
    by_sample = [position_weight(int(n), rate, 1.0, 1, "sample") for n in counts]
    by_token = [position_weight(int(n), rate, 1.0, 1, "token") for n in counts]
    scale = 1 / counts.mean()
    sums = losses / np.array(by_sample)  # the cross-entropies that give these per-sample losses
    assert np.mean(sums * by_token * scale) == pytest.approx(np.average(losses, weights=counts))
