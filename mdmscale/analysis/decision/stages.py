"""The order of the study: ask the gate, tune, fix the learning rates, and only then open the held-out set."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mdmscale.analysis.decision.arms import GATE
from mdmscale.analysis.decision.comparison import Scores, difference
from mdmscale.analysis.decision.jobs import Job, run_jobs
from mdmscale.analysis.decision.part import (
    TUNING_SEED,
    Condition,
    Part,
    Unit,
    load_arrays,
    run_unit,
    units_of,
)
from mdmscale.analysis.study.statistics import Difference
from mdmscale.diffusion.p_pots import probe_edges
from mdmscale.system.files import read_object, write_file

RATES_FILE = "learning_rates.json"


@dataclass(frozen=True, eq=False)
class Results:
    """The scores of a condition's lanes, in the order of seeds.

    rates: float64 [lanes]. nll: float64 [weights, lanes, items], nats a token; see part.WEIGHTS. is_right:
    bool, of the same shape, or None. gradient_norms: float32 [lanes, steps].
    """

    condition: Condition
    seeds: np.ndarray
    rates: np.ndarray
    nll: np.ndarray
    is_right: np.ndarray | None
    gradient_norms: np.ndarray

    def at_rate(self, rate: float) -> "Results":
        """Only the lanes with this learning rate."""
        at = self.rates == rate
        right = None if self.is_right is None else self.is_right[:, at]
        return Results(
            self.condition, self.seeds[at], self.rates[at], self.nll[:, at], right, self.gradient_norms[at]
        )

    def likelihoods(self, weights: int = 0) -> Scores:
        return Scores(self.nll[weights])

    def accuracies(self, weights: int = 0) -> Scores:
        assert self.is_right is not None
        return Scores(self.is_right[weights].astype(np.float64))

    def quality(self, weights: int = 0) -> Scores:
        """What learning rates are chosen by, higher is better: right answers, or minus the likelihood."""
        return Scores(-self.nll[weights]) if self.is_right is None else self.accuracies(weights)


def read_results(units: Sequence[Unit], folder: Path) -> Results:
    """The results of the units of one condition."""
    arrays = [load_arrays(unit.path(folder)) for unit in units]
    joined = {
        name: np.concatenate([each[name] for each in arrays], axis=1 if name in ("nll", "is_right") else 0)
        for name in arrays[0]
    }
    return Results(
        units[0].condition,
        joined["seeds"],
        joined["rates"],
        joined["nll"],
        joined.get("is_right"),
        joined["gradient_norms"],
    )


def jobs_of(part: Part, units: Sequence[Unit], folder: Path) -> list[Job]:
    return [
        Job(unit.path(folder), unit.path(folder).stem, unit_cost(part, unit), run_unit, (part, unit, folder))
        for unit in units
    ]


def unit_cost(part: Part, unit: Unit) -> float:
    """Forward rows with gradients, of all lanes and steps. A row without gradients counts as a third."""
    diffusion, probes = part.diffusion(unit.condition.arm), 0
    if diffusion.t_sampler == "p_pots":
        options = diffusion.p_pots
        num_cells = len(probe_edges(options)) - 1
        probes = len(options.probe_steps) * options.num_x0 * options.num_masks * num_cells
        probes *= diffusion.corruption.probed.num_rows
    arm, settings = unit.condition.arm, part.settings
    training = settings.num_steps * settings.batch_size * arm.rows
    return unit.num_lanes * (training + (probes + part.scored_rows(unit.stage)) / 3)


def tuning_units(part: Part, conditions: Sequence[Condition]) -> dict[Condition, list[Unit]]:
    seeds = list(range(TUNING_SEED, TUNING_SEED + part.settings.tuning_seeds))
    return {each: units_of("tuning", each, seeds, part.settings.rates) for each in conditions}


def tuned(
    part: Part, conditions: Sequence[Condition], folder: Path, num_processes: int
) -> dict[Condition, Results]:
    """The results of every learning rate on the tuning split."""
    units = tuning_units(part, conditions)
    every = [unit for group in units.values() for unit in group]
    run_jobs(jobs_of(part, every, folder), num_processes, f"{part.name}, tuning")
    return {condition: read_results(group, folder) for condition, group in units.items()}


def best_rate(results: Results) -> float:
    """The learning rate of the best raw weights. Of equal accuracies the better likelihood decides."""
    groups = [results.at_rate(rate) for rate in np.unique(results.rates)]
    best = max(groups, key=lambda group: (group.quality().mean, -group.likelihoods().mean))
    return float(best.rates[0])


def fixed_rates(tuning: dict[Condition, Results], folder: Path) -> dict[Condition, float]:
    """The learning rates, which are in a file before the held-out set is opened, and never change after."""
    path = folder / RATES_FILE
    known: dict[str, float] = read_object(path) if path.exists() else {}
    rates = {
        condition: known.get(condition.name, best_rate(results)) for condition, results in tuning.items()
    }
    write_file(
        path, json.dumps({**known, **{each.name: rate for each, rate in rates.items()}}, indent=1) + "\n"
    )
    return rates


def final_units(
    conditions: Sequence[Condition], rates: dict[Condition, float], num_seeds: int
) -> dict[Condition, list[Unit]]:
    return {each: units_of("final", each, list(range(num_seeds)), (rates[each],)) for each in conditions}


def final_results(
    part: Part, rates: dict[Condition, float], num_seeds: int, folder: Path, num_processes: int
) -> dict[Condition, Results]:
    """Train the final seeds and score them on the held-out set."""
    units = final_units(list(rates), rates, num_seeds)
    # by groups of seeds, so that a study that is stopped has all arms with some of the seeds
    every = [unit for group in zip(*units.values(), strict=True) for unit in group]
    run_jobs(jobs_of(part, every, folder), num_processes, f"{part.name}, final")
    return {condition: read_results(group, folder) for condition, group in units.items()}


@dataclass(frozen=True)
class Gate:
    """Whether noise limits the task under a schedule: the controls less standard, at their best rates."""

    schedule: str
    differences: dict[str, Difference]

    @property
    def is_open(self) -> bool:
        """Whether 8 rows a sample and a batch of four times the size both beat one row."""
        return all(each.low > 0 for each in self.differences.values())

    def sentence(self) -> str:
        found = ", ".join(
            f"{name} {100 * each.mean:+.1f} points ({100 * each.low:+.1f} to {100 * each.high:+.1f})"
            for name, each in self.differences.items()
        )
        verdict = (
            "noise limits the task"
            if self.is_open
            else "not limited by noise, as far as these seeds can tell"
        )
        return f"Schedule {self.schedule}, against standard on the tuning split: {found}: {verdict}."


def ask_gate(tuning: dict[Condition, Results], schedule: str) -> Gate:
    """The gate of a schedule, from the tuning of its arms with clipping."""
    of_arm = {
        condition.arm.name: results.at_rate(best_rate(results)).quality()
        for condition, results in tuning.items()
        if condition.schedule == schedule and condition.clipping and condition.arm.name in GATE
    }
    standard, *controls = GATE
    return Gate(schedule, {name: difference(of_arm[name], of_arm[standard]) for name in controls})
