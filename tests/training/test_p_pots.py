"""P-POTS in a run: when p(t) is fitted, from which statistics, and what a checkpoint stores."""

import json
from typing import Any

import numpy as np
import pytest

from mdmscale.config.diffusion import DiffusionSection
from mdmscale.diffusion.baseline import EmaBaseline
from mdmscale.diffusion.density import DensityTable
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


def test_a_density_over_another_range_is_measured_anew(ranks: Ranks) -> None:
    """One of a window would never draw what the whole objective also weighs."""
    narrow = PPots(
        DiffusionSection(t_sampler="p_pots", loss_weight="window", p_pots={"probe_steps": [0]}),
        TSampler(seed=0, global_batch_size=8, density=DensityTable.uniform(0.3, 0.8)),
        statistics,
    )
    whole = make(probe_steps=[0])
    renew(narrow, 0, ranks, probes=True)
    whole.load_state_dict(narrow.state_dict())
    assert whole.t_sampler.density.edges.tolist() == [0, 1]
    assert renew(whole, 7, ranks, probes=True) is not None


def learning() -> tuple[PPots, EmaBaseline]:
    p_pots = PPots(DiffusionSection(loss_weight="learned"), TSampler(seed=0, global_batch_size=8), statistics)
    return p_pots, EmaBaseline(p_pots.edges, decay=0.99)


def train_on(p_pots: PPots, baseline: EmaBaseline, first_step: int, last_step: int) -> None:
    """Steps of a model with the loss 1 + 3 t^2 at t, which learns nothing, as the trainer takes them."""
    for step in range(first_step, last_step):
        factors = p_pots.learn_weight(step, baseline.averages)
        if factors is not None:
            baseline.rescale(factors)
        draws = [p_pots.t_sampler.draw(8 * step + slot) for slot in range(8)]
        t = np.array([levels.t[0] for levels in draws])
        losses = p_pots.t_sampler.loss_weight.at(t, 0.0) * (1 + 3 * t**2)
        cells = np.clip(np.searchsorted(baseline.edges, t, side="right") - 1, 0, None)
        counts, sums = (np.bincount(cells, each, len(baseline.edges) - 1) for each in (np.ones(8), losses))
        baseline.observe(float(losses.mean()), float(baseline.values(t).mean()), counts, sums)


def test_a_learned_weight_becomes_inverse_to_the_loss() -> None:
    p_pots, baseline = learning()
    train_on(p_pots, baseline, 0, 100)
    assert np.array_equal(p_pots.t_sampler.loss_weight.values, [1.0]), "not before its first renewal"
    train_on(p_pots, baseline, 100, 501)
    middles = (p_pots.edges[:-1] + p_pots.edges[1:]) / 2
    expected = 1 / (1 + 3 * middles**2)
    expected /= np.sum(expected * np.diff(p_pots.edges))
    loss_weight = p_pots.t_sampler.loss_weight
    assert loss_weight.values == pytest.approx(expected, rel=0.05)
    assert np.sum(loss_weight.values * np.diff(loss_weight.edges)) == pytest.approx(1)


def test_averages_of_losses_under_the_old_weight_do_not_weigh_twice() -> None:
    """A renewal scales them. Without many new samples the next one changes little."""
    p_pots, baseline = learning()
    train_on(p_pots, baseline, 0, 101)
    factors = p_pots.learn_weight(200, baseline.averages)
    assert factors == pytest.approx(np.ones(len(p_pots.edges) - 1), abs=0.01)  # there was one step since then
    assert np.ptp(p_pots.t_sampler.loss_weight.values) > 1


def test_a_cell_without_any_loss_leaves_the_weight_as_it_is() -> None:
    p_pots, _ = learning()
    assert p_pots.learn_weight(100, np.linspace(0, 1, len(p_pots.edges) - 1)) is None
    off = make("uniform")
    assert off.learn_weight(100, np.ones(len(off.edges) - 1)) is None


def test_a_learned_weight_is_part_of_the_state() -> None:
    (p_pots, baseline), (other, _) = learning(), learning()
    train_on(p_pots, baseline, 0, 101)
    other.load_state_dict(json.loads(json.dumps(p_pots.state_dict())))
    assert other.state_dict() == p_pots.state_dict()
    assert np.array_equal(other.t_sampler.loss_weight.values, p_pots.t_sampler.loss_weight.values)
    off = make("uniform")
    off.load_state_dict(p_pots.state_dict())
    assert off.t_sampler.loss_weight.values.tolist() == [1.0], "another loss_weight was chosen"


@pytest.mark.parametrize("t_sampler", ["uniform", "stratified"])
def test_a_density_is_not_taken_up_where_another_t_sampler_is_chosen(t_sampler: str, ranks: Ranks) -> None:
    on, off = make(probe_steps=[0]), make(t_sampler)
    renew(on, 0, ranks, probes=True)
    off.load_state_dict(on.state_dict())
    assert off.t_sampler.density.density.tolist() == [1.0]
