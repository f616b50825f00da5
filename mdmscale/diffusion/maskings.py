"""The choices of `diffusion.masking` by name, and the corruption of a run."""

from dataclasses import replace
from typing import Protocol

from mdmscale.diffusion.bernoulli import BernoulliMasks, IndependentRows, reflected, same
from mdmscale.diffusion.corruption import NEXT_TOKENS, Corruption
from mdmscale.diffusion.exact_counts import ExactCounts
from mdmscale.diffusion.objective import Objective
from mdmscale.diffusion.paper_scripts import PaperScripts

CORRUPTIONS: dict[str, Corruption] = {
    "bernoulli": BernoulliMasks((same,)),
    "independent": IndependentRows(2),
    "mirror": BernoulliMasks((same, same)),
    "complement": BernoulliMasks((same, reflected)),
    "exact": ExactCounts(1),
    "exact_pair": ExactCounts(2, is_fixed=True),
}


class CorruptionOptions(Protocol):
    """The options that decide how samples become rows."""

    @property
    def objective(self) -> Objective: ...
    @property
    def masking(self) -> str: ...
    @property
    def rows(self) -> int | None: ...


def corruption_of(options: CorruptionOptions) -> Corruption:
    """The corruption of a run: what `masking` names, unless the objective has its own."""
    match options.objective:
        case "ar":
            return NEXT_TOKENS
        case "paper_scripts":
            return PaperScripts(is_paired=options.masking == "mirror")
    corruption = CORRUPTIONS[options.masking]
    if options.rows is None or not corruption.takes_rows:
        return corruption
    return replace(corruption, rows=options.rows)  # type: ignore[type-var]
