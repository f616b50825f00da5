"""Every estimator has the objective as its exact expectation, whatever draws t and whatever weighs it."""

from itertools import product

import numpy as np
import pytest
from diffusion.enumeration import (
    EPS,
    SKEWED,
    expectation,
    make_noise,
    objective,
    random_table,
)

from mdmscale.diffusion.density import DensityTable
from mdmscale.diffusion.loss_weight import LossWeight
from mdmscale.diffusion.sample import Sample

SAMPLE = Sample(np.arange(4), np.array([True, False, True, True]))
TABLE = random_table(4)
LOSS_WEIGHTS = {
    "elbo": LossWeight.elbo(),
    "uniform": LossWeight.uniform(EPS),
    "window": LossWeight.window(0.3, 0.7),
    "bell": LossWeight.bell(0.4, 0.2),
    "learned": LossWeight.against(np.array([0, 0.05, 0.5, 1]), np.array([0.2, 1.0, 3.0])),
}
DENSITIES = {"uniform": DensityTable.uniform(), "skewed": SKEWED}
ESTIMATORS = {
    **{
        f"{masking} {weights}": {"masking": masking, "weights": weights}
        for masking in ("bernoulli", "mirror", "complement")
        for weights in ("rate", "count")
    },
    **{f"independent {rows}": {"masking": "independent", "rows": rows} for rows in (1, 3)},
    "independent rate": {"masking": "independent", "weights": "rate"},
    **{f"exact {rows}": {"masking": "exact", "rows": rows} for rows in (1, 2, 3, 4)},
    "exact_pair": {"masking": "exact_pair"},
}


# A bell has 64 pieces, each integrated by itself. Once for every kind of weight is enough.
CASES = [
    case
    for case in product(ESTIMATORS, DENSITIES, LOSS_WEIGHTS)
    if case[2] != "bell" or (case[1] == "skewed" and "independent" not in case[0])
]


@pytest.mark.parametrize(("estimator", "density", "loss_weight"), CASES)
def test_the_expectation_is_the_objective(estimator: str, density: str, loss_weight: str) -> None:
    noise, w = make_noise(**ESTIMATORS[estimator]), LOSS_WEIGHTS[loss_weight]
    expected = objective(w, TABLE, SAMPLE)
    assert expectation(noise, DENSITIES[density], TABLE, SAMPLE, w) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("estimator", ["bernoulli rate", "bernoulli count", "mirror rate", "independent 3"])
def test_t_may_be_drawn_within_the_window_alone(estimator: str) -> None:
    w, density = LOSS_WEIGHTS["window"], DensityTable(np.array([0.3, 0.5, 0.7]), np.array([4.0, 1.0]))
    expected = objective(w, TABLE, SAMPLE)
    found = expectation(make_noise(**ESTIMATORS[estimator]), density, TABLE, SAMPLE, w)
    assert found == pytest.approx(expected, rel=1e-12)


def test_the_objectives_differ() -> None:
    """Otherwise the agreement above would prove little."""
    values = [objective(w, TABLE, SAMPLE) for w in LOSS_WEIGHTS.values()]
    assert np.diff(np.sort(values)).min() > 1e-4


def test_a_count_that_is_never_drawn_would_bias_exact_counts() -> None:
    """So p(t) must cover [0, 1] even for a window: its rates give every count some weight."""
    w = LOSS_WEIGHTS["window"]
    found = expectation(make_noise(masking="exact"), DensityTable.uniform(0.4, 0.6), TABLE, SAMPLE, w)
    assert abs(found / objective(w, TABLE, SAMPLE) - 1) > 0.05
