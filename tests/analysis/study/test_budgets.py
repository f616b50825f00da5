"""Batch sizes and steps of each method under each budget."""

import json
from pathlib import Path
from typing import Any

import pytest

from mdmscale.analysis.study.budgets import (
    Arm,
    Budget,
    batch_sizes,
    control_of,
    make_arms,
    steps_in_time,
    with_steps,
)
from mdmscale.analysis.study.methods import BUILT_IN, Method
from mdmscale.config.run import RunConfig
from mdmscale.system.errors import UserError


@pytest.fixture
def file(tiny: dict[str, Any], tmp_path: Path) -> str:
    """A config with MIRROR pairs, 8 samples a step in forwards of 4."""
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(tiny))
    return str(path)


def sizes(arm: Arm) -> tuple[int, int, int]:
    """Rows a step, samples a step, rows a forward."""
    train, rows = arm.config.train, arm.config.diffusion.rows_per_sample
    return rows * train.global_batch_size, train.global_batch_size, rows * train.micro_batch_size


def arms_of(file: str, budget: Budget, *overrides: str) -> dict[str, Arm]:
    return {arm.name: arm for arm in make_arms(file, list(overrides), list(BUILT_IN), budget)}


@pytest.mark.parametrize("masking", ["mirror", "bernoulli"])
def test_equal_rows(file: str, masking: str) -> None:
    rows = 16 if masking == "mirror" else 8
    arms = arms_of(file, "equal-rows", f"diffusion.masking={masking}")
    assert {sizes(arm) for name, arm in arms.items() if "mirror" in name} == {(rows, rows // 2, rows // 2)}
    assert {sizes(arm) for name, arm in arms.items() if "mirror" not in name} == {(rows, rows, rows // 2)}


@pytest.mark.parametrize("budget", ["equal-samples", "equal-wall"])
def test_equal_samples(file: str, budget: Budget) -> None:
    """Pairs have twice the rows of a step, and no more rows in a forward."""
    arms = arms_of(file, budget, "diffusion.masking=bernoulli")
    assert sizes(arms["standard"]) == (8, 8, 4)
    assert sizes(arms["mirror"]) == (16, 8, 4)


def test_a_forward_that_would_not_divide_stays_as_the_config_says(tiny: dict[str, Any]) -> None:
    tiny["train"] |= {"global_batch_size": 6, "micro_batch_size": 3}
    tiny["diffusion"] = {}
    base = RunConfig.model_validate(tiny)
    assert batch_sizes(base, 2, "equal-rows") == (3, 1)
    assert batch_sizes(base, 2, "equal-samples") == (6, 1)
    tiny["diffusion"] = {"masking": "mirror"}
    assert batch_sizes(RunConfig.model_validate(tiny), 1, "equal-samples") == (6, 6)
    tiny["train"] |= {"global_batch_size": 9}
    assert batch_sizes(RunConfig.model_validate(tiny), 1, "equal-samples") == (9, 3)


def test_rows_that_make_no_pairs_are_refused(file: str) -> None:
    odd = ("diffusion.masking=bernoulli", "train.global_batch_size=5", "train.micro_batch_size=1")
    with pytest.raises(UserError, match=r"method mirror: train.global_batch_size = 5 makes 5 rows a step"):
        arms_of(file, "equal-rows", *odd)


def test_a_method_may_set_its_own_batch(file: str) -> None:
    own = Method("own", ("train.global_batch_size=24", "diffusion.masking=bernoulli"))
    (arm,) = make_arms(file, [], [own], "equal-rows")
    assert sizes(arm) == (24, 24, 4)


def test_every_problem_of_every_method_is_told_at_once(file: str) -> None:
    methods = [Method("a", ("diffusion.maskin=mirror",)), Method("b", ("optimizer.lr=-1",))]
    with pytest.raises(UserError) as refused:
        make_arms(file, [], [*BUILT_IN, *methods], "equal-rows")
    assert len(refused.value.problems) == 2
    assert "method a: " in str(refused.value) and "method b: " in str(refused.value)


def test_the_control_has_four_times_the_batch_in_as_many_steps(file: str) -> None:
    reference = arms_of(file, "equal-rows")["standard"]
    control = control_of(file, [], reference)
    assert sizes(control) == (64, 64, 8) and sizes(reference) == (16, 16, 8)
    assert control.config.train.steps == reference.config.train.steps
    assert control.config.diffusion == reference.config.diffusion


def test_as_many_steps_as_fit_into_the_references_time(file: str) -> None:
    assert steps_in_time(3000, 0.1, 0.2) == 1500
    assert steps_in_time(3000, 0.1, 0.1) == 3000
    assert steps_in_time(1, 0.1, 9.0) == 1
    arm = arms_of(file, "equal-wall")["mirror"]
    assert with_steps(file, [], arm, 7).config.train.steps == 7
    with pytest.raises(UserError, match=r"method mirror, in 2 steps: .*warmup_steps = 4 exceeds"):
        with_steps(file, [], arm, 2)
