"""How long the study takes on this machine: a few steps are timed, and all work is counted."""

import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from mdmscale.analysis.decision.arms import Arm
from mdmscale.analysis.decision.part import LANES, Condition, Part, units_of
from mdmscale.analysis.decision.stacked_model import ModelShape, StackedModel
from mdmscale.analysis.decision.stacked_training import Lane, TrainingPlan, train
from mdmscale.analysis.decision.stages import tuning_units, unit_cost
from mdmscale.config.training import OptimizerSection
from mdmscale.diffusion.sample import Sample

TIMED_STEPS = 6
ROWS = 4  # samples of a timed step


def seconds_of(part: Part, conditions: Sequence[Condition], num_seeds: int, folder: Path) -> float:
    """Seconds of a core for the units of a part without a file."""
    rows = work(part, conditions, num_seeds, folder)
    return rows * seconds_a_row(part.shape, part.length) if rows else 0.0


def seconds_a_row(shape: ModelShape, length: int) -> float:
    """Seconds of a forward row with its gradient, in a stack of LANES lanes on one thread."""
    samples = [Sample(np.zeros(length, dtype=np.int64), np.ones(length, dtype=bool))]
    lanes = [Lane(seed, OptimizerSection(lr=1e-3)) for seed in range(LANES)]
    plan = TrainingPlan(Arm("timed", "standard").diffusion, ROWS, TIMED_STEPS, ema_decay=0.9)
    times: list[float] = []
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = StackedModel.fresh(shape, range(LANES))
        train(model, samples, lanes, plan, lambda step: times.append(time.process_time()))
    finally:
        torch.set_num_threads(before)
    middle = sorted(second - first for first, second in pairwise(times))[len(times) // 2 - 1]
    return middle / (LANES * ROWS)


def work(part: Part, conditions: Sequence[Condition], num_seeds: int, folder: Path) -> float:
    """The cost, in rows, of a part's units without a file. Final units count with any learning rate."""
    todo = [
        unit
        for units in tuning_units(part, conditions).values()
        for unit in units
        if not unit.path(folder).exists()
    ]
    total = sum(unit_cost(part, unit) for unit in todo)
    for condition in conditions:
        for unit in units_of("final", condition, list(range(num_seeds)), part.settings.rates[:1]):
            pattern = unit.path(folder).name.replace(f".lr{unit.rates[0]:g}.", ".lr*.")
            if not any((folder / "final").glob(pattern)):
                total += unit_cost(part, unit)
    return total
