"""P-POTS in a run: p(t), what it is fitted to, and when it is fitted again."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mdmscale.config.diffusion import DiffusionSection
from mdmscale.diffusion.density import DensityTable
from mdmscale.diffusion.p_pots import (
    FADING,
    CellSums,
    ProbeStatistics,
    expected_gain,
    fit_density,
    probe_edges,
)
from mdmscale.diffusion.t_samplers import TSampler
from mdmscale.parallel.collectives import on_first_rank
from mdmscale.parallel.ranks import Ranks


@dataclass(frozen=True, eq=False)
class Renewal:
    """A new p(t). moment: float64 [cells], the h(t) it was fitted to, see p_pots.probe_edges.

    gain: how many times less second moment than under uniform t.
    """

    density: DensityTable
    moment: np.ndarray
    gain: float


class PPots:
    """The t-sampler of a run, whose density P-POTS replaces where `diffusion.t_sampler` is p_pots.

    Its state is the density and the sums over cells of t that refits start from. The sums also grow under
    another t-sampler, so that P-POTS can be turned on when a run resumes.
    """

    def __init__(self, options: DiffusionSection, t_sampler: TSampler) -> None:
        self.options = options.p_pots
        self.is_on = options.t_sampler == "p_pots"
        self.is_measured = False  # p(t) has been fitted at least once
        self.t_sampler = t_sampler
        self.edges = probe_edges(self.options)
        self.cell_sums = np.zeros((4, len(self.edges) - 1))  # see p_pots.CellSums

    def observe(self, cells: np.ndarray) -> None:
        """Count in what a step showed: float64 [4, cells]."""
        self.cell_sums += cells

    def renew(self, step: int, probe: Callable[[], ProbeStatistics], ranks: Ranks) -> Renewal | None:
        """Fit p(t) again where that is due before step `step`. Every rank calls it, with the same sums.

        A probe measures by forwards of its own. A refit takes what training has seen since the last one.
        """
        if not self.is_on:
            return None
        if self._probe_is_due(step):
            return self._fit(probe().second_moment(self.options.target), ranks)
        every = self.options.refit_every
        if every and step and step % every == 0 and self.cell_sums.any():
            moment = CellSums(self.cell_sums).second_moment(self.options.target)
            self.cell_sums = self.cell_sums * FADING
            return self._fit(moment, ranks)
        return None

    def _probe_is_due(self, step: int) -> bool:
        """At its steps, or late: a run that turns P-POTS on when it resumes has missed the first ones."""
        missed = not self.is_measured and any(probe_step < step for probe_step in self.options.probe_steps)
        return step in self.options.probe_steps or missed

    def _fit(self, moment: np.ndarray, ranks: Ranks) -> Renewal:
        """Fit on rank 0, and sample t from the result on every rank from now on."""
        state = on_first_rank(ranks, lambda: fit_density(moment, self.options).to_state())
        density = DensityTable.from_state(state)
        self.t_sampler = replace(self.t_sampler, density=density)
        self.is_measured = True
        return Renewal(density, moment, expected_gain(moment, density, self.options))

    def state_dict(self) -> dict[str, Any]:
        return {
            "density": self.t_sampler.density.to_state(),
            "cell_sums": self.cell_sums.tolist(),
            "is_measured": self.is_measured,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        cell_sums = np.array(state["cell_sums"])
        if cell_sums.shape == self.cell_sums.shape:  # of the same cells
            self.cell_sums = cell_sums
        if self.is_on and state["is_measured"]:
            self.t_sampler = replace(self.t_sampler, density=DensityTable.from_state(state["density"]))
            self.is_measured = True
