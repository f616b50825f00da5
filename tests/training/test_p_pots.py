"""P-POTS in a run: when p(t) is fitted, from which statistics, and what a checkpoint stores."""

import json
from typing import Any

import numpy as np
import pytest

from mdmscale.config.diffusion import DiffusionSection
from mdmscale.diffusion.loss_weight import LossWeight
from mdmscale.diffusion.p_pots import FADING, CellSums, ProbeStatistics, fit_density
from mdmscale.diffusion.t_samplers import TSampler
from mdmscale.parallel.ranks import Ranks
from mdmscale.training.p_pots import PPots, Renewal


def make(t_sampler: str = "p_pots", **options: Any) -> PPots:
    section = DiffusionSection(t_sampler=t_sampler, p_pots={"target": "loss", **options})
    return PPots(section, TSampler(seed=0, global_batch_size=8), statistics)


PROBED: list[int] = []  # the first samples of the probes so far


def statistics(edges: np.ndarray, first_sample: int, loss_weight: LossWeight) -> ProbeStatistics:
    PROBED.append(first_sample)
    t = (edges[:-1] + edges[1:]) / 2
    losses = np.broadcast_to(1 + t[None, :, None], (2, len(t), 2)).copy()
    return ProbeStatistics(t, losses, losses)


def renew(p_pots: PPots, step: int, ranks: Ranks, probes: bool) -> Renewal | None:
    """`p_pots.renew` at a step, which probes as it says, or not."""
    before = len(PROBED)
    assert p_pots.probe_is_due(step) is probes
    renewal = p_pots.renew(step, 8 * step, ranks)
    assert PROBED[before:] == [8 * step] * probes
    return renewal


def cells(p_pots: PPots) -> np.ndarray:
    """Sums in which the squared loss falls with t."""
    number = len(p_pots.edges) - 1
    return np.stack([np.full(number, 4.0), np.ones(number), np.linspace(9, 1, number), np.ones(number)])


def test_it_measures_at_its_steps_and_only_then(ranks: Ranks) -> None:
    p_pots = make(probe_steps=[0, 5])
    before = p_pots.t_sampler
    renewal = renew(p_pots, 0, ranks, probes=True)
    assert renewal is not None and renewal.gain >= 1
    assert p_pots.t_sampler is not before
    assert np.array_equal(renewal.density.density, p_pots.t_sampler.density.density)
    assert renew(p_pots, 1, ranks, probes=False) is None
    assert renew(p_pots, 5, ranks, probes=True) is not None


def test_another_t_sampler_is_left_alone_but_learns(ranks: Ranks) -> None:
    p_pots = make("uniform", probe_steps=[0], refit_every=1)
    p_pots.observe(cells(p_pots))
    assert renew(p_pots, 0, ranks, probes=False) is None and renew(p_pots, 1, ranks, probes=False) is None
    assert p_pots.state_dict()["cell_sums"] == cells(p_pots).tolist()


def test_a_refit_takes_what_training_has_shown_which_then_fades(ranks: Ranks) -> None:
    p_pots = make(probe_steps=[], refit_every=4)
    assert renew(p_pots, 4, ranks, probes=False) is None, "nothing has been seen yet"
    p_pots.observe(cells(p_pots))
    assert renew(p_pots, 3, ranks, probes=False) is None
    renewal = renew(p_pots, 4, ranks, probes=False)
    assert renewal is not None
    expected = fit_density(CellSums(cells(p_pots)).second_moment("loss"), p_pots.edges, p_pots.options)
    assert np.array_equal(renewal.density.density, expected.density)
    assert np.array_equal(p_pots.cell_sums, cells(p_pots) * FADING)


def test_its_state_survives_json_bit_for_bit(ranks: Ranks) -> None:
    p_pots, other = make(probe_steps=[0]), make(probe_steps=[0])
    renew(p_pots, 0, ranks, probes=True)
    p_pots.observe(cells(p_pots) / 3)
    other.load_state_dict(json.loads(json.dumps(p_pots.state_dict())))
    assert other.state_dict() == p_pots.state_dict()
    assert [other.t_sampler.draw(n).t[0] for n in range(9)] == [
        p_pots.t_sampler.draw(n).t[0] for n in range(9)
    ]
    assert renew(other, 3, ranks, probes=False) is None


def test_turned_on_when_a_run_resumes_it_measures_what_it_missed(ranks: Ranks) -> None:
    off, on = make("uniform", probe_steps=[0]), make(probe_steps=[0])
    on.load_state_dict(off.state_dict())
    assert renew(on, 7, ranks, probes=True) is not None
    assert renew(on, 8, ranks, probes=False) is None


def test_sums_over_other_cells_are_left_alone() -> None:
    table, epr = make(fit="table"), make(fit="epr", num_t=9)
    table.observe(cells(table))
    epr.load_state_dict(table.state_dict())
    assert not epr.cell_sums.any()


@pytest.mark.parametrize("t_sampler", ["uniform", "stratified"])
def test_a_density_is_not_taken_up_where_another_t_sampler_is_chosen(t_sampler: str, ranks: Ranks) -> None:
    on, off = make(probe_steps=[0]), make(t_sampler)
    renew(on, 0, ranks, probes=True)
    off.load_state_dict(on.state_dict())
    assert off.t_sampler.density.density.tolist() == [1.0]
