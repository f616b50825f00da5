"""P-POTS in a run: when p(t) is fitted, from which statistics, and what a checkpoint stores."""

import json
from typing import Any

import numpy as np
import pytest

from mdmscale.config.diffusion import DiffusionSection
from mdmscale.diffusion.p_pots import FADING, CellSums, ProbeStatistics, fit_density
from mdmscale.diffusion.t_samplers import TSampler
from mdmscale.parallel.ranks import Ranks
from mdmscale.training.p_pots import PPots


def make(t_sampler: str = "p_pots", **options: Any) -> PPots:
    section = DiffusionSection(t_sampler=t_sampler, p_pots={"target": "loss", **options})
    return PPots(section, TSampler(seed=0, global_batch_size=8))


def statistics() -> ProbeStatistics:
    t = np.linspace(0.1, 0.9, 16)
    losses = np.broadcast_to(1 + t[None, :, None], (2, 16, 2)).copy()
    return ProbeStatistics(t, losses, losses)


def never() -> ProbeStatistics:
    raise AssertionError("nothing was to be measured")


def cells(p_pots: PPots) -> np.ndarray:
    """Sums in which the squared loss falls with t."""
    number = len(p_pots.edges) - 1
    return np.stack([np.full(number, 4.0), np.ones(number), np.linspace(9, 1, number), np.ones(number)])


def test_it_measures_at_its_steps_and_only_then(ranks: Ranks) -> None:
    p_pots = make(probe_steps=[0, 5])
    before = p_pots.t_sampler
    renewal = p_pots.renew(0, statistics, ranks)
    assert renewal is not None and renewal.gain >= 1
    assert p_pots.t_sampler is not before
    assert np.array_equal(renewal.density.density, p_pots.t_sampler.density.density)
    assert p_pots.renew(1, never, ranks) is None
    assert p_pots.renew(5, statistics, ranks) is not None


def test_another_t_sampler_is_left_alone_but_learns(ranks: Ranks) -> None:
    p_pots = make("uniform", probe_steps=[0], refit_every=1)
    p_pots.observe(cells(p_pots))
    assert p_pots.renew(0, never, ranks) is None and p_pots.renew(1, never, ranks) is None
    assert p_pots.state_dict()["cell_sums"] == cells(p_pots).tolist()


def test_a_refit_takes_what_training_has_shown_which_then_fades(ranks: Ranks) -> None:
    p_pots = make(probe_steps=[], refit_every=4)
    assert p_pots.renew(4, never, ranks) is None, "nothing has been seen yet"
    p_pots.observe(cells(p_pots))
    assert p_pots.renew(3, never, ranks) is None
    renewal = p_pots.renew(4, never, ranks)
    assert renewal is not None
    expected = fit_density(CellSums(cells(p_pots)).second_moment("loss"), p_pots.options)
    assert np.array_equal(renewal.density.density, expected.density)
    assert np.array_equal(p_pots.cell_sums, cells(p_pots) * FADING)


def test_its_state_survives_json_bit_for_bit(ranks: Ranks) -> None:
    p_pots, other = make(probe_steps=[0]), make(probe_steps=[0])
    p_pots.renew(0, statistics, ranks)
    p_pots.observe(cells(p_pots) / 3)
    other.load_state_dict(json.loads(json.dumps(p_pots.state_dict())))
    assert other.state_dict() == p_pots.state_dict()
    assert [other.t_sampler.draw(n)[0][0] for n in range(9)] == [
        p_pots.t_sampler.draw(n)[0][0] for n in range(9)
    ]
    assert other.renew(3, never, ranks) is None


def test_turned_on_when_a_run_resumes_it_measures_what_it_missed(ranks: Ranks) -> None:
    off, on = make("uniform", probe_steps=[0]), make(probe_steps=[0])
    on.load_state_dict(off.state_dict())
    assert on.renew(7, statistics, ranks) is not None
    assert on.renew(8, never, ranks) is None


def test_sums_over_other_cells_are_left_alone() -> None:
    table, epr = make(fit="table"), make(fit="epr", num_t=9)
    table.observe(cells(table))
    epr.load_state_dict(table.state_dict())
    assert not epr.cell_sums.any()


@pytest.mark.parametrize("t_sampler", ["uniform", "stratified"])
def test_a_density_is_not_taken_up_where_another_t_sampler_is_chosen(t_sampler: str, ranks: Ranks) -> None:
    on, off = make(probe_steps=[0]), make(t_sampler)
    on.renew(0, statistics, ranks)
    off.load_state_dict(on.state_dict())
    assert off.t_sampler.density.density.tolist() == [1.0]
