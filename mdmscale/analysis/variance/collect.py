"""Collect the statistics of the report: waves of samples, distributed over the ranks, within a budget.

Legend: V = vectors whose means are kept apart; 3 = the measures (sums.MEASURES).
"""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial

import numpy as np
import torch
import torch.distributed as dist

from mdmscale.analysis.variance.draws import Estimator, Gauge
from mdmscale.analysis.variance.methods import WAVE
from mdmscale.analysis.variance.sums import GroupSums, Metric, adam_metric
from mdmscale.analysis.variance.waves import TRIPLES, Measurer, WaveStatistics, measure_wave, vector_places
from mdmscale.data.source import SampleSource
from mdmscale.parallel.collectives import all_reduce_sum, on_first_rank
from mdmscale.parallel.ranks import Ranks
from mdmscale.system.errors import UserError

NUM_GROUPS = 12  # of waves; the intervals come from leaving out one at a time
MIN_WAVES = 6
# More would need more memory than most machines have: a rank sums groups x vectors x parameters.
MAX_PARAMETERS = 4_000_000
# Norm weights are few, exist at every depth, and their gradients depend on all activations of a layer.
LARGE_MODEL_PATTERN = r"norm\.weight$"
FIRST_PILOT = 1 << 41  # index of the pilot's first sample, far from those that are measured
PILOT_WAVES = 12


@dataclass(frozen=True)
class Budget:
    """When to stop: after a number of samples or of seconds. The other one is None."""

    num_samples: int | None
    seconds: float | None

    def share_spent(self, num_samples: int, seconds: float) -> float:
        """The share of the budget that is used; 1 or more ends the collection."""
        if self.num_samples is not None:
            return num_samples / self.num_samples
        assert self.seconds is not None
        return seconds / self.seconds


@dataclass(frozen=True, eq=False)
class Collected:
    """The statistics of all waves, the same on every rank.

    waves: as of one wave, with the waves as a further axis in front. groups: int64 [waves]. products: float64
    [V, groups, groups, 3], inner products of the groups' sums of mean vectors.
    """

    estimators: list[Estimator]
    groups: np.ndarray
    waves: WaveStatistics
    products: np.ndarray

    @property
    def num_samples(self) -> int:
        return len(self.groups) * WAVE

    @property
    def num_rows(self) -> int:
        """Forward rows that were drawn."""
        others = sum(each.rows for each in self.estimators[1:])
        return self.num_samples * (3 * TRIPLES + others)


def choose_parameters(model: torch.nn.Module, pattern: str | None) -> tuple[str, list[torch.nn.Parameter]]:
    """The parameters whose gradients are measured, and the pattern that selects them ("" for all).

    All others are frozen, so that backward does not compute their gradients.

    Raises:
        UserError: if the pattern matches no parameters or too many.
    """
    named = dict(model.named_parameters())
    if pattern is None:
        size = sum(parameter.numel() for parameter in named.values())
        pattern = "" if size <= MAX_PARAMETERS else LARGE_MODEL_PATTERN
    chosen = {name: each for name, each in named.items() if re.search(pattern, name)}
    size = sum(parameter.numel() for parameter in chosen.values())
    if not chosen:
        raise UserError(
            f"--parameters {pattern!r}: matches none; names are such as {next(iter(named))} and "
            f"{list(named)[-1]}"
        )
    if size > MAX_PARAMETERS:
        raise UserError(
            f"--parameters {pattern!r}: {size:,} parameters are more than {MAX_PARAMETERS:,}; choose a "
            r"layer, such as 'layers\.0\.self_attn\.q_proj'"
        )
    for name, parameter in named.items():
        parameter.requires_grad_(name in chosen)
    return pattern, list(chosen.values())


def measure_metric(
    gauge: Gauge, standard: Estimator, source: SampleSource, batch_size: int, seed: int, ranks: Ranks
) -> Metric:
    """Adam's metric for batches of `batch_size` samples, from draws of standard on samples of their own.

    The gauge takes their mean loss as its usual loss.
    """
    squares, total = gauge.zeros(), gauge.zeros()
    for wave in range(ranks.rank, PILOT_WAVES, ranks.world_size):
        for index in range(FIRST_PILOT + wave * WAVE, FIRST_PILOT + (wave + 1) * WAVE):
            noised, weight = standard.draw(source.train_sample(index), seed, index)
            vector = gauge.measure(noised).vector
            squares += weight * vector.square()
            total += weight * vector
    num = PILOT_WAVES * WAVE
    squares, mean = all_reduce_sum(squares) / num, all_reduce_sum(total) / num
    gauge.usual_loss = float(mean[-1])
    return adam_metric(squares, mean, num, batch_size, gauge.sizes)


def collect(
    measurer: Measurer,
    estimators: list[Estimator],
    source: SampleSource,
    budget: Budget,
    ranks: Ranks,
    progress: Callable[[float, int], None],
) -> Collected:
    """Measure waves until the budget is spent. Standard is the first of `estimators`.

    progress: called with the share of the budget that is used and the number of samples so far.
    """
    num_groups = -(-NUM_GROUPS // ranks.world_size) * ranks.world_size
    sums = GroupSums(num_groups, max(vector_places(estimators)) + 1, measurer.gauge.width, ranks)
    mine: list[tuple[int, WaveStatistics]] = []
    started, spent, num_waves = time.monotonic(), 0.0, 0
    while spent < 1 or num_waves < MIN_WAVES:
        wave = num_waves + ranks.rank
        samples = [(index, source.train_sample(index)) for index in range(wave * WAVE, (wave + 1) * WAVE)]
        statistics, means = measure_wave(measurer, estimators, samples)
        sums.add(wave % num_groups, means)
        mine.append((wave, statistics))
        num_waves += ranks.world_size
        share = budget.share_spent(num_waves * WAVE, time.monotonic() - started)
        spent = on_first_rank(ranks, partial(float, share))  # rank 0's clock decides for all
        progress(spent, num_waves * WAVE)
    parts: list[list] = [[] for _ in range(ranks.world_size)]
    dist.all_gather_object(parts, mine)
    waves = [each for _, each in sorted((one for part in parts for one in part), key=lambda one: one[0])]
    stacked = {
        field.name: np.stack([getattr(each, field.name) for each in waves])
        for field in fields(WaveStatistics)
    }
    groups = np.arange(len(waves)) % num_groups
    return Collected(estimators, groups, WaveStatistics(**stacked), sums.products(measurer.metric))
