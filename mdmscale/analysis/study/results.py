"""The results of a study's runs: scores by method and seed, their spread, and what they have trained."""

from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from mdmscale.training.gradient_norms import variation
from mdmscale.training.metrics import read_metrics, read_series


@dataclass(frozen=True)
class RunResult:
    """One run.

    scores: of each question, in the order of the test. gradient_spread: the noise of the gradient, as the
    standard deviation of its norm over its mean. loss: mean training loss. Both are over the second half of
    the steps. steps, samples and seconds are what the run has trained.
    """

    method: str
    seed: int
    scores: tuple[float, ...]
    loss: float
    gradient_spread: float
    steps: int
    samples: int
    seconds: float

    @property
    def accuracy(self) -> float:
        """The mean score."""
        return mean(self.scores)

    def summary(self) -> dict[str, Any]:
        """The result as JSON values, with the accuracy instead of all scores, which the run's folder has."""
        values = asdict(self)
        del values["scores"]
        return {**values, "accuracy": self.accuracy}


def result_of_run(folder: Path, method: str, seed: int, scores: list[float]) -> RunResult:
    """The result of a finished run, from its metrics."""
    records = read_metrics(folder)
    late = {name: each.second_half for name, each in read_series(folder, ("loss", "grad_norm")).items()}
    return RunResult(
        method,
        seed,
        tuple(scores),
        loss=float(np.mean(late["loss"])),
        gradient_spread=variation(late["grad_norm"]),
        steps=len(records),
        samples=records[-1]["consumed_samples"],
        seconds=sum(
            value for record in records for name, value in record.items() if name.startswith("seconds_")
        ),
    )


def by_method(results: list[RunResult]) -> dict[str, list[RunResult]]:
    """The results of each method, in order of first appearance."""
    return {
        method: [r for r in results if r.method == method]
        for method in dict.fromkeys(r.method for r in results)
    }


def spread(values: list[float]) -> float:
    """Standard deviation over seeds; 0 for a single seed."""
    return stdev(values) if len(values) > 1 else 0.0
