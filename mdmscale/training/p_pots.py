"""The t-sampler of a run: P-POTS renews its p(t), and `loss_weight: learned` its w(t)."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mdmscale.config.diffusion import DiffusionSection
from mdmscale.diffusion.density import DensityTable
from mdmscale.diffusion.loss_weight import LossWeight
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

# Draws the estimator on the cells of t that some edges bound, on samples from an index on, under a w(t); see
# p_pots_probe.py.
Probe = Callable[[np.ndarray, int, LossWeight], ProbeStatistics]
LEARNT_EVERY = 100  # steps between renewals of a learned w(t)


@dataclass(frozen=True, eq=False)
class Renewal:
    """A new p(t).

    moment: float64 [cells], the h(t) that p(t) is fitted to, in the cells of p_pots.probe_edges.
    gain: the second moment under uniform t, divided by that under p(t).
    """

    density: DensityTable
    moment: np.ndarray
    gain: float


class PPots:
    """The t-sampler of a run. If `diffusion.t_sampler` is p_pots, P-POTS replaces its density.

    The state is the density, w(t) if it is learned, and the sums over cells of t that refits use. Other
    t-samplers collect the sums too, so P-POTS can be turned on when a run resumes.
    """

    def __init__(self, options: DiffusionSection, t_sampler: TSampler, probe: Probe) -> None:
        self.section, self.options = options, options.p_pots
        self.learns_weight = options.loss_weight == "learned"
        self.is_on = options.t_sampler == "p_pots"
        self.has_missed_probes = False  # P-POTS was turned on when the run resumed
        self.t_sampler = t_sampler
        self.probe = probe
        self.edges = probe_edges(self.options, options.drawn_range)
        self.cell_sums = np.zeros((4, len(self.edges) - 1))  # see p_pots.CellSums

    def observe(self, cells: np.ndarray) -> None:
        """Add the sums of a step over cells of t, float64 [4, cells], see p_pots.CellSums."""
        self.cell_sums += cells

    def renew(self, step: int, first_sample: int, ranks: Ranks) -> Renewal | None:
        """Fit p(t) if a fit is due before step `step`, which begins with sample `first_sample`; else None.

        A probe runs forwards of its own. A refit uses the sums that training has collected since the last
        refit, and part of the older ones (FADING). Every rank calls this, with the same sums.
        """
        if self.probe_is_due(step):
            statistics = self.probe(self.edges, first_sample, self.t_sampler.loss_weight)
            return self._fit(statistics.second_moment(self.options.target), ranks)
        if not self.is_on:
            return None
        every = self.options.refit_every
        if every and step and step % every == 0 and self.cell_sums.any():
            moment = CellSums(self.cell_sums).second_moment(self.options.target)
            self.cell_sums = self.cell_sums * FADING
            return self._fit(moment, ranks)
        return None

    def probe_is_due(self, step: int) -> bool:
        """Whether `renew` probes: at a probe step, or late if P-POTS was turned on after the first ones."""
        steps = self.options.probe_steps
        is_late = self.has_missed_probes and any(probe_step < step for probe_step in steps)
        return self.is_on and (step in steps or is_late)

    def learn_weight(self, step: int, averages: np.ndarray) -> np.ndarray | None:
        """Renew a learned w(t) if that is due before step `step`.

        Args:
            averages: float64 [cells], the average loss at t, weighed by the present w(t).

        Returns:
            float64 [cells], the factor by which w(t) changed; None if it did not.
        """
        if not self.learns_weight or step == 0 or step % LEARNT_EVERY:
            return None
        if not (averages > 0).all():  # masks without a token can leave a cell at 0
            return None
        middles = (self.edges[:-1] + self.edges[1:]) / 2
        old = self.t_sampler.loss_weight.at(middles, eps=0.0)
        new = LossWeight.against(self.edges, averages / old)
        self.t_sampler = replace(self.t_sampler, loss_weight=new)
        return new.values / old

    def _fit(self, moment: np.ndarray, ranks: Ranks) -> Renewal:
        """Fit on rank 0. From now on every rank samples t from the result."""

        def fit() -> dict[str, Any]:
            return fitted_density(moment, self.edges, self.section).to_state()

        density = DensityTable.from_state(on_first_rank(ranks, fit))
        self.t_sampler = replace(self.t_sampler, density=density)
        self.has_missed_probes = False
        return Renewal(density, moment, expected_gain(moment, self.edges, density))

    def state_dict(self) -> dict[str, Any]:
        return {
            "density": self.t_sampler.density.to_state(),
            "cell_sums": self.cell_sums.tolist(),
            "is_on": self.is_on,
            "loss_weight": self.t_sampler.loss_weight.to_state() if self.learns_weight else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        cell_sums = np.array(state["cell_sums"])
        if cell_sums.shape == self.cell_sums.shape:  # the checkpoint has the same cells
            self.cell_sums = cell_sums
        density = DensityTable.from_state(state["density"])
        # a density over another range would leave out part of the objective, if the window has changed
        fits = state["is_on"] and np.array_equal(density.edges[[0, -1]], self.edges[[0, -1]])
        self.has_missed_probes = self.is_on and not fits
        if self.is_on and fits:
            self.t_sampler = replace(self.t_sampler, density=density)
        if self.learns_weight and state.get("loss_weight"):
            loss_weight = LossWeight.from_state(state["loss_weight"])
            self.t_sampler = replace(self.t_sampler, loss_weight=loss_weight)


def fitted_density(moment: np.ndarray, edges: np.ndarray, section: DiffusionSection) -> DensityTable:
    """The p(t) of a run with these options, fitted to h(t) [cells] in the cells of `edges`."""
    defensive = 0.0 if section.objective == "paper_scripts" else None  # the scripts mix in nothing
    return fit_density(moment, edges, section.p_pots, defensive, not section.corruption.draws_counts)
