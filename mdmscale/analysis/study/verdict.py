"""What the results of a study say, in sentences, and when they say nothing."""

from dataclasses import dataclass

import numpy as np

from mdmscale.analysis.study.methods import CONTROL
from mdmscale.analysis.study.results import RunResult, by_method, spread
from mdmscale.analysis.study.statistics import (
    CONFIDENCE,
    Difference,
    detectable_difference,
    paired_difference,
    pooled_spread,
)


@dataclass(frozen=True)
class Comparison:
    """A method against the reference, over the seeds and questions that both have.

    interval: at 95%. strict: so wide that all methods' intervals together hold with 95% (Bonferroni); the
    sentence calls a method better or worse by it.
    """

    method: str
    num_seeds: int
    interval: Difference
    strict: Difference

    @property
    def is_better(self) -> bool:
        return self.num_seeds > 1 and self.strict.low > 0

    @property
    def is_worse(self) -> bool:
        return self.num_seeds > 1 and self.strict.high < 0


def compare(results: list[RunResult], reference: str) -> list[Comparison]:
    """Every other method against the reference; the control too."""
    groups = by_method(results)
    others = [name for name in groups if name != reference]
    num_compared = max(1, sum(name != CONTROL for name in others))
    found = []
    for name in others:
        pairs = differences(groups[name], groups[reference])
        if pairs is not None:
            strict = CONFIDENCE if name == CONTROL else 1 - (1 - CONFIDENCE) / num_compared
            found.append(
                Comparison(name, len(pairs), paired_difference(pairs), paired_difference(pairs, strict))
            )
    return found


def differences(method: list[RunResult], reference: list[RunResult]) -> np.ndarray | None:
    """The method's scores less the reference's of the same seed, [seeds, questions]; None without a seed."""
    of_seed = {result.seed: result for result in reference}
    rows = [
        np.array(result.scores) - np.array(of_seed[result.seed].scores)
        for result in method
        if result.seed in of_seed
    ]
    return np.stack(rows) if rows else None


def answer(results: list[RunResult], reference: str) -> str:
    """The study's answer in one sentence."""
    compared = [each for each in compare(results, reference) if each.method != CONTROL]
    if not compared:
        return ""
    num_seeds = min(each.num_seeds for each in compared)
    if num_seeds < 2:
        return (
            "Undecided: a single seed says nothing about other seeds, where methods may rank the other way; "
            "give at least three with --seeds."
        )
    better = [_against(each) for each in compared if each.is_better]
    worse = [_against(each) for each in compared if each.is_worse]
    open_ones = [each.method for each in compared if not (each.is_better or each.is_worse)]
    parts = []
    if better:
        parts.append(f"better than {reference}: {', '.join(better)}")
    if worse:
        parts.append(f"worse than {reference}: {', '.join(worse)}")
    if open_ones:
        parts.append(f"undecided: {', '.join(open_ones)}, {_limit(results, num_seeds)}")
    sentence = "; ".join(parts)
    return sentence[0].upper() + sentence[1:] + "."


def control_answer(results: list[RunResult], reference: str) -> str:
    """Whether noise limits the task, by the control with four times the batch; "" without one."""
    found = next((each for each in compare(results, reference) if each.method == CONTROL), None)
    if found is None:
        return ""
    groups = by_method(results)
    before, after = (spread([r.accuracy for r in groups[name]]) for name in (reference, CONTROL))
    what = (
        f"Control: a batch of four times the size changes the result of {reference} by "
        f"{_points(found.interval)} and its spread over seeds from {100 * before:.1f} to {100 * after:.1f}; "
    )
    if found.num_seeds < 2:
        return what + "a single seed cannot tell whether noise limits this task."
    if found.is_better:
        return what + "so noise (or too few samples) limits this task, and methods that lower it can help."
    if found.is_worse:
        return what + "so less noise does not help here, and methods that lower it cannot be expected to."
    limit = _limit([r for r in results if r.method in (reference, CONTROL)], found.num_seeds)
    return what + f"so noise is not seen to limit this task ({limit})."


def worst_against_best(results: list[RunResult], reference: str) -> str:
    """The paper's comparison: the worst seed of each method with the best seed of the reference."""
    groups = by_method(results)
    worst = {
        name: min(result.accuracy for result in group)
        for name, group in groups.items()
        if name not in (reference, CONTROL)
    }
    if reference not in groups or not worst:
        return ""
    best = max(result.accuracy for result in groups[reference])
    words = ", ".join(f"{name} {value:.1%}" for name, value in worst.items())
    return f"best seed of {reference} {best:.1%}; worst seed of {words}"


def _against(found: Comparison) -> str:
    return f"{found.method} by {_points(found.interval)}"


def _points(difference: Difference) -> str:
    low, mean, high = (100 * value for value in (difference.low, difference.mean, difference.high))
    return f"{mean:+.1f} points ({low:+.1f} to {high:+.1f})"


def _limit(results: list[RunResult], num_seeds: int) -> str:
    """What so many seeds cannot tell, at the spread that the methods have."""
    groups = by_method(results).values()
    within = pooled_spread([[result.accuracy for result in group] for group in groups])
    limit = 100 * detectable_difference(within, num_seeds)
    return (
        f"as {num_seeds} seeds with a spread of {100 * within:.1f} points cannot tell differences below "
        f"{limit:.1f} points"
    )
