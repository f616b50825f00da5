"""The recommendation in plain words: a clear winner, no winner, and what is left out."""

from typing import Any

import pytest
import yaml

from mdmscale.analysis.variance.estimates import Estimate, Ratio
from mdmscale.analysis.variance.recommendation import MethodResult, recommend, recommended
from mdmscale.config.diffusion import DiffusionSection

ONE = Ratio(1.0, 1.0, 1.0, 1.0)
PAIR = {"masking": "exact_pair", "t_sampler": "p_pots", "p_pots": {"target": "gradient"}}


def result(
    gradient: Ratio, rows: int = 1, keys: dict[str, Any] | None = None, adam: Ratio = ONE, **changes: Any
) -> MethodResult:
    ratio = {"loss": ONE, "gradient": gradient, "adam": adam}
    return MethodResult(
        keys or {},
        rows,
        **{"is_unbiased": True, **changes},
        variance={},
        ratio=ratio,
        effective_batch=16 * gradient.value,
    )


STANDARD = result(ONE, keys={"weights": "rate"})


def test_a_clear_winner_is_given_as_keys_with_its_interval() -> None:
    results = {
        "standard": STANDARD,
        "mirror": result(Ratio(1.2, 0.9, 1.5, 0.8), 2, {"masking": "mirror"}),
        "exact_pair+p_pots": result(Ratio(3.0, 2.5, 3.6, 2.0), 2, PAIR),
        "window": result(Ratio(9.0, 8.0, 10.0, 7.0), 1, {"loss_weight": "window"}, is_unbiased=False),
    }
    assert recommended(results, 16) == "exact_pair+p_pots"
    text = recommend(results, 16, Estimate(200.0, 150.0, 300.0))
    assert (
        "Use exact_pair+p_pots. At equal forward rows it reduces the gradient's variance 3.00 times" in text
    )
    assert "95% interval 2.50 to 3.60" in text and "16 rows count as 48 rows of standard" in text
    assert "16 rows are 8 samples: set train.global_batch_size accordingly" in text
    assert "The configured batch of 16 rows is smaller, so noise limits a step." in text
    assert "Another objective, so not recommended by its variance: window (9.00 times" in text
    block = "\n".join(line for line in text.splitlines() if line.startswith("    "))
    assert DiffusionSection(**yaml.safe_load(block)["diffusion"]) == DiffusionSection(**PAIR)


def test_nothing_is_recommended_if_nothing_is_distinguishable() -> None:
    results = {
        "standard": STANDARD,
        # above 1 by itself, but not among as many comparisons
        "mirror": result(Ratio(1.2, 1.01, 1.5, 0.9), 2, {"masking": "mirror"}),
        # not under Adam
        "exact": result(Ratio(3.0, 2.5, 3.6, 2.0), adam=Ratio(0.5, 0.4, 0.6, 0.3), keys={"masking": "exact"}),
        "window": result(Ratio(9.0, 8.0, 10.0, 7.0), is_unbiased=False),
    }
    assert recommended(results, 16) is None
    text = recommend(results, 16, Estimate(2.0, 1.0, 3.0))
    assert text.startswith("No unbiased method is distinguishable from standard")
    assert "Set these keys" not in text
    assert "noise is not what limits a step" in text


def test_of_equals_the_simplest_is_recommended() -> None:
    results = {
        "standard": STANDARD,
        "exact_4": result(Ratio(2.1, 1.9, 2.3, 1.8), 4, {"masking": "exact", "rows": 4}),
        "exact": result(Ratio(2.0, 1.8, 2.2, 1.7), 1, {"masking": "exact"}),
        "count": result(Ratio(1.5, 1.4, 1.6, 1.3), 1, {}),
    }
    assert recommended(results, 16) == "exact"
    text = recommend(results, 16, None)
    assert "    diffusion:\n      masking: exact\n      t_sampler: uniform\n" in text + "\n"
    assert "global_batch_size" not in text
    only_large = {name: each for name, each in results.items() if name in ("standard", "exact_4")}
    assert recommended(only_large, 4) == "exact_4"
    assert recommended(only_large, 2) is None, "its rows do not fit the batch"
    assert "cannot be told from 0" in text


@pytest.mark.parametrize(
    ("scale", "words"),
    [
        (Estimate(16.0, 10.0, 30.0), "is about as large"),
        (Estimate(160.0, 100.0, 300.0), "noise limits a step"),
        (Estimate(1.6, 1.0, 3.0), "less variance changes little"),
    ],
)
def test_it_says_whether_noise_limits_the_batch(scale: Estimate, words: str) -> None:
    assert words in recommend({"standard": STANDARD}, 16, scale)
