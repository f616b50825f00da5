"""Comparisons, the gate, and the sentences of the verdict, on results made by hand."""

import numpy as np
import pytest

from mdmscale.analysis.decision.arms import FINE_TUNING, FROM_SCRATCH, Arm, choose_arms
from mdmscale.analysis.decision.comparison import (
    Scores,
    clipped_share,
    difference,
    gradient_variation,
    spread_ratio,
)
from mdmscale.analysis.decision.part import Condition
from mdmscale.analysis.decision.stages import Results, ask_gate, best_rate
from mdmscale.analysis.decision.verdict import Regimes, answers, goal
from mdmscale.system.errors import UserError

ARMS = {arm.name: arm for arm in FINE_TUNING}
SEEDS, ITEMS = 24, 64


def results(name: str, accuracies: np.ndarray, rate: float = 1e-3) -> Results:
    """Seeds [seeds] with these accuracies. Averaged weights are always right."""
    is_right = np.arange(ITEMS) < np.round(accuracies * ITEMS)[:, None]  # [seeds, items]
    both = np.stack([is_right, np.ones_like(is_right)])
    return Results(
        Condition(ARMS[name], "constant", 1.0),
        np.arange(len(accuracies)),
        np.full(len(accuracies), rate),
        1.0 - both,
        both,
        np.ones((len(accuracies), 4), dtype=np.float32),
    )


def around(mean: float, spread: float) -> np.ndarray:
    return np.clip(mean + spread * np.random.default_rng(0).standard_normal(SEEDS), 0, 1)


def test_spread_ratio_finds_the_ratio_and_an_interval() -> None:
    draws = np.random.default_rng(2).standard_normal((2, 200, 1))
    found = spread_ratio(Scores(draws[0]), Scores(2 * draws[1]))
    assert found.low < 0.5 < found.high
    assert found.mean == pytest.approx(0.5, rel=0.15)
    assert found.high / found.low < 1.5, "200 seeds are enough to tell it from 1"
    same = Scores(np.ones((5, 3)))
    assert np.isnan(spread_ratio(same, Scores(draws[0, :5])).mean)


def test_norms_are_summed_up_after_the_first_half_of_the_steps() -> None:
    norms = np.array([[100.0, 50.0, 1.0, 3.0], [0.1, 0.1, 2.0, 2.0]])
    assert gradient_variation(norms) == pytest.approx((0.5 + 0.0) / 2)
    assert clipped_share(norms, 1.0) == pytest.approx(5 / 8)
    assert clipped_share(norms, 0.0) == 0


def test_the_gate_is_open_only_where_both_controls_are_better() -> None:
    low, high = around(0.4, 0.05), around(0.8, 0.05)

    def gate(rows: np.ndarray, batch: np.ndarray) -> bool:
        arms = {"standard": low, "rows_8": rows, "batch_4x": batch}
        tuning = {(each := results(name, values)).condition: each for name, values in arms.items()}
        return ask_gate(tuning, "constant").is_open

    assert gate(high, high)
    assert not gate(low, high)
    assert not gate(high, low)


def test_the_rate_of_the_best_accuracy_is_chosen() -> None:
    slow, fast = results("standard", around(0.3, 0.1), 1e-3), results("standard", around(0.5, 0.1), 4e-3)
    joined = Results(
        slow.condition,
        np.concatenate([slow.seeds, fast.seeds]),
        np.concatenate([slow.rates, fast.rates]),
        np.concatenate([slow.nll, fast.nll], axis=1),
        np.concatenate([slow.is_right, fast.is_right], axis=1),
        np.concatenate([slow.gradient_norms, fast.gradient_norms]),
    )
    assert best_rate(joined) == 4e-3
    assert joined.at_rate(1e-3).accuracies().mean == slow.accuracies().mean


def sentences_of(arms: dict[str, np.ndarray]) -> dict[str, list[str]]:
    final = {(each := results(name, values)).condition: each for name, values in arms.items()}
    return {**dict(answers(Regimes(final))), "goal": goal(Regimes(final))}


def test_sentences_say_what_the_intervals_say() -> None:
    found = sentences_of(
        {
            "standard": around(0.5, 0.15),
            "independent_2": around(0.6, 0.1),
            "standard_2x": around(0.6, 0.1),
            "mirror": around(0.6, 0.1),
            "exact_pair_gradient": around(0.9, 0.03),
            "p_pots_gradient": around(0.5, 0.15),
            "p_pots_paper": around(0.2, 0.05),
        }
    )
    assert "no difference seen" in found["Does MIRROR beat two independent rows?"][0]
    assert "better" in found["Do exact pairs beat two independent rows?"][0]
    samplers = found["Does any t-sampler change results?"][0]
    assert "yes: p_pots_paper (worse)" in samplers and "p_pots_gradient (" not in samplers
    at_samples, at_rows = found["Is the worst seed of a method above the best seed of standard?"]
    assert "equal samples: exact_pair_gradient;" in at_samples or "equal samples: none;" in at_samples
    assert "equal rows" in at_rows
    assert (
        "better at equal rows reached" in found["goal"][0] and "half the spread reached" in found["goal"][0]
    )


def test_a_method_that_is_worse_misses_the_goal() -> None:
    found = sentences_of(
        {
            "standard": around(0.5, 0.1),
            "standard_2x": around(0.8, 0.05),
            "exact_pair_gradient": around(0.5, 0.1),
        }
    )
    assert "better at equal rows not reached" in found["goal"][0]
    assert "half the spread not reached" in found["goal"][0]


def test_differences_are_paired_by_seed() -> None:
    base = np.random.default_rng(0).random((SEEDS, ITEMS))
    found = difference(Scores(base + 0.1), Scores(base))
    assert found.low == pytest.approx(0.1) and found.high == pytest.approx(0.1)


@pytest.mark.parametrize("arm", [*FINE_TUNING, *FROM_SCRATCH], ids=lambda arm: arm.name)
def test_every_arm_is_a_diffusion_section(arm: Arm) -> None:
    assert arm.rows == arm.samples * arm.diffusion.rows_per_sample
    assert (arm.kind == "objective") == (
        arm.diffusion.objective != "full" or arm.diffusion.loss_weight != "elbo"
    )


def test_arms_at_equal_rows_have_them() -> None:
    assert {arm.rows for arm in FROM_SCRATCH} == {8}
    assert all(arm.rows == 2 for arm in FINE_TUNING if arm.name.endswith("_2x"))


def test_unknown_and_unsupported_arms_are_refused() -> None:
    with pytest.raises(UserError, match="did you mean mirror"):
        choose_arms(FINE_TUNING, ["miror"])
    with pytest.raises(UserError, match=r"do not support loss_weight"):
        choose_arms([Arm("standard", "standard", {"loss_weight": "learned"})], None)
    with pytest.raises(UserError, match="arm standard"):
        choose_arms([Arm("standard", "standard", {"masking": "bernouli"})], None)
    assert [arm.name for arm in choose_arms(FINE_TUNING, ["mirror"])] == ["standard", "mirror"]
