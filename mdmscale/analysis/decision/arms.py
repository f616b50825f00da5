"""The arms of the study: each a name and options of the `diffusion` section, parsed as those of a run.

samples: how many times the study's batch an arm has. So standard_2x is standard with twice the samples in as
many steps, which costs as many forward rows as a pair of rows a sample.
"""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from pydantic import ValidationError

from mdmscale.config.diffusion import DiffusionSection
from mdmscale.system.errors import UserError

Kind = Literal["standard", "control", "method", "objective"]
"""standard: the baseline, at either cost. control: tells what plain rows or samples are worth. method: lowers
the variance of an unchanged objective. objective: trains something else, so its likelihood may suffer."""


@dataclass(frozen=True)
class Arm:
    """options: `diffusion.*` by dotted key, such as {"masking": "exact", "p_pots.target": "loss"}."""

    name: str
    kind: Kind
    options: dict[str, Any] = field(default_factory=dict, hash=False)
    samples: int = 1

    @cached_property
    def diffusion(self) -> DiffusionSection:
        """The section.

        Raises:
            UserError: naming the arm and each problem.
        """
        values: dict[str, Any] = {}
        for name, value in self.options.items():
            *parents, last = name.split(".")
            target = values
            for parent in parents:
                target = target.setdefault(parent, {})
            target[last] = value
        try:
            section = DiffusionSection.model_validate(values)
        except ValidationError as error:
            raise UserError(*(f"arm {self.name}: {each['msg']}" for each in error.errors())) from None
        unsupported = {
            "loss_weight": section.loss_weight == "learned",
            "p_pots.refit_every": section.p_pots.refit_every > 0,
            "isad": section.isad is not None,
            "syrm": section.syrm is not None,
            "normalization": section.normalization != "sample",
        }
        if problems := [name for name, is_set in unsupported.items() if is_set]:
            raise UserError(*(f"arm {self.name}: stacked models do not support {name}" for name in problems))
        return section

    def probing(self, num_samples: int, steps: list[int]) -> DiffusionSection:
        """The section with probes of so many samples before these steps."""
        p_pots = self.diffusion.p_pots.model_copy(update={"num_x0": num_samples, "probe_steps": steps})
        return self.diffusion.model_copy(update={"p_pots": p_pots})

    @property
    def rows(self) -> int:
        """Forward rows a step, in units of the study's batch."""
        return self.samples * self.diffusion.rows_per_sample


def p_pots(target: str, **options: Any) -> dict[str, Any]:
    return {"t_sampler": "p_pots", "p_pots.target": target, **options}


# The paper's own fit is the parametric one.
PAPER = p_pots("paper", **{"p_pots.fit": "epr"})
GRADIENT = p_pots("gradient")
RATE = {"weights": "rate"}

GATE = ("standard", "rows_8", "batch_4x")
"""The arms that tell whether noise limits the task: the first one against the others."""

FINE_TUNING = (
    Arm("standard", "standard", RATE),
    Arm("rows_8", "control", {"masking": "independent", "rows": 8, **RATE}),
    Arm("batch_4x", "control", RATE, samples=4),
    Arm("independent_2", "control", {"masking": "independent", "rows": 2, **RATE}),
    Arm("standard_2x", "standard", RATE, samples=2),
    Arm("count_weights", "method", {"weights": "count"}),
    Arm("stratified", "method", {"t_sampler": "stratified", **RATE}),
    Arm("mirror", "method", {"masking": "mirror"}),
    Arm("complement", "method", {"masking": "complement"}),
    Arm("p_pots_paper", "method", {**PAPER, **RATE}),
    Arm("p_pots_loss", "method", {**p_pots("loss"), **RATE}),
    Arm("p_pots_gradient", "method", {**GRADIENT, **RATE}),
    Arm("p_pots_gradient_2x", "method", {**GRADIENT, **RATE}, samples=2),
    Arm("p_pots_gradient+mirror", "method", {**GRADIENT, "masking": "mirror"}),
    Arm("exact", "method", {"masking": "exact"}),
    Arm("exact_gradient", "method", {**GRADIENT, "masking": "exact"}),
    Arm("exact_gradient_2x", "method", {**GRADIENT, "masking": "exact"}, samples=2),
    Arm("exact_pair", "method", {"masking": "exact_pair"}),
    Arm("exact_pair_gradient", "method", {**GRADIENT, "masking": "exact_pair"}),
    Arm("clipped", "objective", {"loss_weight": "window", **RATE}),
    Arm("clipped_2x", "objective", {"loss_weight": "window", **RATE}, samples=2),
    Arm("paper_scripts", "objective", {**PAPER, "objective": "paper_scripts", "masking": "mirror"}),
    Arm("ar", "objective", {"objective": "ar"}),
)

UNCLIPPED = (
    "standard",
    "independent_2",
    "count_weights",
    "p_pots_paper",
    "p_pots_loss",
    "p_pots_gradient",
    "exact_gradient",
    "mirror",
    "exact_pair_gradient",
)
"""The arms that are also trained without clipping of gradients."""

FROM_SCRATCH = (
    Arm("standard", "standard", RATE, samples=8),
    Arm("p_pots_gradient", "method", {**GRADIENT, **RATE}, samples=8),
    Arm("exact_gradient", "method", {**GRADIENT, "masking": "exact"}, samples=8),
    Arm("exact_pair_gradient", "method", {**GRADIENT, "masking": "exact_pair"}, samples=4),
    Arm("window_wide", "objective", {"loss_weight": "window", "window": [0.05, 0.95], **RATE}, samples=8),
    Arm("window", "objective", {"loss_weight": "window", **RATE}, samples=8),
    Arm("bell", "objective", {"loss_weight": "bell", **RATE}, samples=8),
)


def choose_arms(known: Sequence[Arm], names: Iterable[str] | None) -> list[Arm]:
    """The named arms in the order of `known`, with standard, which all are compared with; or all.

    Raises:
        UserError: for a name that is none, and for options that do not parse.
    """
    by_name = {arm.name: arm for arm in known}
    wanted = set(by_name if names is None else names) | {"standard"}
    problems = []
    for name in sorted(wanted - set(by_name)):
        close = difflib.get_close_matches(name, by_name, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        problems.append(f"--arms {name}: {hint}choose from {', '.join(by_name)}")
    if problems:
        raise UserError(*problems)
    chosen = [arm for arm in known if arm.name in wanted]
    for arm in chosen:
        _ = arm.diffusion  # raises
    return chosen
