"""The metrics of gradient norms: clipped steps, and how much the last 100 norms vary."""

import json
import math

import numpy as np
import pytest

from mdmscale.training.gradient_norms import WINDOW, GradientNorms

NORMS = np.random.default_rng(0).gamma(2.0, size=250)


def test_clipped_are_the_steps_above_the_limit() -> None:
    norms = GradientNorms()
    observed = [norms.observe(norm, 1.0)["clipped"] for norm in (0.5, 1.0, 1.001, math.inf, math.nan)]
    assert observed == [0, 0, 1, 0, 0], "a step that is not finite is skipped, not clipped"
    assert norms.observe(1e6, 0.0)["clipped"] == 0, "no clipping"


def test_variation_is_that_of_the_last_100_finite_norms() -> None:
    norms = GradientNorms()
    assert "grad_norm_variation" not in norms.observe(NORMS[0], 1.0), "one norm has none"
    for number, norm in enumerate(NORMS[1:], start=1):
        norms.observe(math.inf, 1.0)
        window = NORMS[: number + 1][-WINDOW:]
        found = norms.observe(norm, 1.0)["grad_norm_variation"]
        assert found == pytest.approx(window.std() / window.mean())


def test_gradients_of_zero_do_not_vary() -> None:
    norms = GradientNorms()
    assert [norms.observe(0.0, 1.0) for _ in range(2)][-1] == {"clipped": 0, "grad_norm_variation": 0.0}


def test_a_resumed_run_goes_on_with_the_norms_that_it_has_written() -> None:
    norms, resumed = GradientNorms(), GradientNorms()
    written = [*map(float, NORMS[:170]), math.inf]
    for norm in written:
        norms.observe(norm, 1.0)
    resumed.recall(json.loads(json.dumps(written)))
    for norm in NORMS[170:]:
        assert norms.observe(float(norm), 1.0) == resumed.observe(float(norm), 1.0)
