"""Collect the statistics of the report: samples in rounds, distributed over the ranks, within a budget."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.distributed as dist

from mdmscale.analysis.variance.draws import PLAIN, SINGLES, Drawer, SampleDraws
from mdmscale.analysis.variance.maskings import PAIRED
from mdmscale.analysis.variance.moments import GroupSums, SampleStatistics, sample_statistics
from mdmscale.data.source import SampleSource
from mdmscale.diffusion.uniforms import Stream, generator
from mdmscale.parallel.collectives import on_first_rank
from mdmscale.parallel.ranks import Ranks
from mdmscale.system.errors import UserError

MIN_GROUPS = 12
# More would need more memory than most machines have: a rank sums groups x cells x parameters.
MAX_PARAMETERS = 4_000_000
# Norm weights are few, exist at every depth, and their gradients depend on all activations of a layer.
LARGE_MODEL_PATTERN = r"norm\.weight$"


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
class CollectedStatistics:
    """The collected statistics, the same on every rank.

    plain: float64 [samples, PLAIN]. mean_losses, proxy (squared logit-gradient norms): float64 [samples, K].
    loss_products, gradient_products: float64 [groups, K, groups, K].
    """

    loss: list[SampleStatistics]
    gradient: list[SampleStatistics]
    groups: np.ndarray
    plain: np.ndarray
    mean_losses: np.ndarray
    proxy: np.ndarray
    loss_products: np.ndarray
    gradient_products: np.ndarray

    @property
    def num_samples(self) -> int:
        return len(self.groups)

    @property
    def num_rows(self) -> int:
        """Forward rows that were computed: single draws, pairs of two rows, and plain draws."""
        cells = self.proxy.shape[1]
        return self.num_samples * (cells * (SINGLES + 2 * len(PAIRED)) + PLAIN)


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


def collect_statistics(
    drawer: Drawer,
    source: SampleSource,
    seed: int,
    budget: Budget,
    ranks: Ranks,
    progress: Callable[[float, int], None],
) -> CollectedStatistics:
    """Draw samples, in rounds of one for each group, until the budget is spent.

    progress: called with the share of the budget that is used and the number of samples so far.
    """
    num_groups = -(-max(MIN_GROUPS, ranks.world_size) // ranks.world_size) * ranks.world_size
    cells = len(drawer.edges) - 1
    params = sum(parameter.numel() for parameter in drawer.parameters)
    gradient_sums = GroupSums(num_groups, cells, params, ranks)
    loss_sums = GroupSums(num_groups, cells, 1, ranks)
    mine: list[tuple[int, SampleStatistics, SampleStatistics, np.ndarray, np.ndarray, np.ndarray]] = []
    started, spent, rounds = time.monotonic(), 0.0, 0
    while spent < 1 or rounds < 2:  # leaving out a group must leave two samples for U-statistics
        for group in gradient_sums.mine:
            index = rounds * num_groups + group
            draws = drawer.draw(source.train_sample(index), generator(seed, Stream.VARIANCE, index))
            gradient_sums.add(group, draws.gradient)
            loss_sums.add(group, draws.loss)
            mine.append((index, *_statistics(draws)))
        rounds += 1
        share = budget.share_spent(rounds * num_groups, time.monotonic() - started)
        spent = on_first_rank(ranks, partial(float, share))  # rank 0's clock decides for all
        progress(spent, rounds * num_groups)
    parts: list[list] = [[] for _ in range(ranks.world_size)]
    dist.all_gather_object(parts, mine)
    rows = sorted((row for part in parts for row in part), key=lambda row: row[0])
    indices, loss, gradient, plain, mean_losses, proxy = zip(*rows, strict=True)
    return CollectedStatistics(
        list(loss),
        list(gradient),
        np.array(indices) % num_groups,
        np.array(plain),
        np.array(mean_losses),
        np.array(proxy),
        loss_sums.products(),
        gradient_sums.products(),
    )


def _statistics(
    draws: SampleDraws,
) -> tuple[SampleStatistics, SampleStatistics, np.ndarray, np.ndarray, np.ndarray]:
    mean_losses = draws.loss.single.reshape(-1, SINGLES).mean(dim=1).numpy()
    return (
        sample_statistics(draws.loss),
        sample_statistics(draws.gradient),
        draws.plain,
        mean_losses,
        draws.proxy,
    )
