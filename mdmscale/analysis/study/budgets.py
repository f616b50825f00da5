"""How much each method may train: batch sizes and steps that make the methods of a study comparable.

The config of a study describes the reference's budget. Its batch sizes count samples, of which a pair has two
forward rows.

equal-rows      the same number of forward rows in a step: methods with pairs get half the samples
equal-samples   the same samples in a step, so that pairs cost double (the paper's budget)
equal-wall      as equal-samples, but each method takes as many steps as the reference's time allows
"""

import math
from dataclasses import dataclass
from typing import Literal

from mdmscale.analysis.study.methods import CONTROL, Method
from mdmscale.config.loading import load_config
from mdmscale.config.run import RunConfig
from mdmscale.system.errors import UserError

Budget = Literal["equal-rows", "equal-samples", "equal-wall"]
CONTROL_FACTOR = 4


@dataclass(frozen=True)
class Arm:
    """A method with all its overrides of the study's config, and the config that they make."""

    method: Method
    overrides: tuple[str, ...]
    config: RunConfig

    @property
    def name(self) -> str:
        return self.method.name


def make_arms(file: str, overrides: list[str], methods: list[Method], budget: Budget) -> list[Arm]:
    """Each method's overrides and config, with the batch sizes of the budget.

    Raises:
        UserError: with every problem of every method.
    """
    base = load_config(file, overrides)
    arms, problems = [], []
    for method in methods:
        try:
            arms.append(_arm(file, overrides, method, base, budget))
        except UserError as error:
            problems += [f"method {method.name}: {problem}" for problem in error.problems]
    if problems:
        raise UserError(*problems)
    return arms


def control_of(file: str, overrides: list[str], reference: Arm) -> Arm:
    """The reference with a batch of four times the size, in as many steps.

    It has a quarter of the noise, from masks, t and data. Where it is no better, the task is not limited by
    noise, and no method that lowers noise can help.
    """
    batch = reference.config.train.global_batch_size * CONTROL_FACTOR
    method = Method(CONTROL, (*reference.overrides, f"train.global_batch_size={batch}"))
    return Arm(method, method.overrides, load_config(file, [*overrides, *method.overrides]))


def with_steps(file: str, overrides: list[str], arm: Arm, steps: int) -> Arm:
    """The arm with another number of steps.

    Raises:
        UserError: where other options do not allow it.
    """
    own = (*arm.overrides, f"train.steps={steps}")
    try:
        return Arm(arm.method, own, load_config(file, [*overrides, *own]))
    except UserError as error:
        raise UserError(
            *(f"method {arm.name}, in {steps} steps: {line}" for line in error.problems)
        ) from None


def steps_in_time(reference_steps: int, reference_seconds: float, seconds: float) -> int:
    """How many steps of `seconds` fit into the time of the reference's steps; at least one."""
    return max(1, round(reference_steps * reference_seconds / seconds))


def batch_sizes(base: RunConfig, rows_per_sample: int, budget: Budget) -> tuple[int, int]:
    """global_batch_size and micro_batch_size of a method with so many forward rows a sample.

    A forward has no more rows than the base's, if that divides the batch, so that it needs no more memory.

    Raises:
        UserError: where the base's rows are no whole number of samples.
    """
    samples, rows = base.train.global_batch_size, base.diffusion.rows_per_sample
    if budget == "equal-rows":
        if samples * rows % rows_per_sample:
            raise UserError(
                f"train.global_batch_size = {samples} makes {samples * rows} rows a step, no multiple of "
                f"this method's {rows_per_sample} rows a sample; give an even one"
            )
        samples = samples * rows // rows_per_sample
    micro = max(1, base.train.micro_batch_size * rows // rows_per_sample)
    return samples, micro if samples % micro == 0 else math.gcd(samples, base.train.micro_batch_size)


def _arm(file: str, overrides: list[str], method: Method, base: RunConfig, budget: Budget) -> Arm:
    own = method.overrides
    if not any(each.startswith("train.global_batch_size=") for each in own):  # a method may say it itself
        config = load_config(file, [*overrides, *own])
        samples, micro = batch_sizes(base, config.diffusion.rows_per_sample, budget)
        own = (*own, f"train.global_batch_size={samples}", f"train.micro_batch_size={micro}")
    return Arm(method, own, load_config(file, [*overrides, *own]))
