"""The EPR fit: its gradient against finite differences, its curves against a fit without a gradient."""

import subprocess
import sys

import numpy as np
import pytest
from scipy.optimize import minimize

from mdmscale.diffusion import epr
from mdmscale.diffusion.epr import constrain, divergence, epr_weight, fit_epr, log_weight_gradient
from mdmscale.diffusion.uniforms import Stream, generator

MIDPOINTS = (np.arange(29) + 0.5) / 29
SHAPES = {  # of sqrt(h)
    "flat": np.ones(29),
    "rising": 1 + 2 * MIDPOINTS,
    "steep at 0": 1 / np.sqrt(MIDPOINTS + 0.01),
    "a valley": 0.3 + (MIDPOINTS - 0.5) ** 2,
    "closed form": np.sqrt(1 + 0.3 * (1 - MIDPOINTS) / MIDPOINTS),
    "noisy": np.exp(0.03 * np.random.default_rng(0).normal(size=29)) * (0.3 + MIDPOINTS**2),
}
RAW = np.random.default_rng(1).normal(scale=2.0, size=(200, 7)).clip(-11, 11)


@pytest.fixture(scope="module", params=SHAPES)
def target(request: pytest.FixtureRequest) -> np.ndarray:
    return SHAPES[request.param] / SHAPES[request.param].sum()


def test_the_gradient_is_that_of_differences(target: np.ndarray) -> None:
    step = 1e-5
    for raw in RAW:
        _, gradient = divergence(raw, MIDPOINTS, target)
        for place in range(7):
            shift = step * np.eye(7)[place]
            above, below = (divergence(raw + sign * shift, MIDPOINTS, target)[0] for sign in (1, -1))
            assert gradient[place] == pytest.approx((above - below) / (2 * step), rel=1e-5, abs=1e-8)


def test_the_gradient_of_the_weight_is_finite_at_both_ends() -> None:
    ends = np.array([0.0, 1.0])
    for raw in RAW:
        assert np.isfinite(log_weight_gradient(constrain(raw), ends)).all()


def fit_without_gradient(t: np.ndarray, w: np.ndarray) -> np.ndarray:
    """The same search, with scipy's gradient from finite differences."""
    starts = generator(0, Stream.PROBE, 0).normal(scale=1.5, size=(epr.NUM_STARTS, 7))
    options = {"ftol": 1e-14, "gtol": 1e-10}
    fits = [
        minimize(
            lambda raw: divergence(raw, t, w / w.sum())[0],
            start,
            method="L-BFGS-B",
            bounds=[(-12, 12)] * 7,
            options=options,
        )
        for start in starts
    ]
    return constrain(min(fits, key=lambda fit: fit.fun).x)


def test_the_curve_is_that_of_a_fit_without_gradient(
    target: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(epr, "NUM_STARTS", 6)
    curves = [epr_weight(fit(MIDPOINTS, target), MIDPOINTS) for fit in (fit_epr, fit_without_gradient)]
    ours, theirs = (curve / curve.sum() for curve in curves)
    assert ours == pytest.approx(theirs, rel=3e-4)
    by_curve = [np.sum(target * np.log(target / curve)) for curve in (ours, theirs)]
    assert by_curve[0] <= by_curve[1] + 1e-9, "an exact gradient does not stop earlier"


def test_scipy_is_imported_only_by_a_fit() -> None:
    code = (
        "import sys, numpy as np\n"
        "from mdmscale.diffusion import epr, p_pots\n"
        "before = 'scipy' in sys.modules\n"
        "epr.NUM_STARTS = 1\n"
        "epr.fit_epr(np.array([0.2, 0.5, 0.8]), np.array([1.0, 2.0, 3.0]))\n"
        "print(before, 'scipy' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False True\n"
