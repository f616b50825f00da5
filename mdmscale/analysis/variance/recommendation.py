"""The recommendation: which keys of a config to set, in plain words."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from mdmscale.analysis.variance.estimates import Estimate, Ratio
from mdmscale.analysis.variance.methods import STANDARD

PLAIN_KEYS = {
    "masking": "bernoulli",
    "t_sampler": "uniform",
}  # their defaults, which a config may differ from


@dataclass(frozen=True)
class MethodResult:
    """What was found of a method. variance and ratio are by measure.

    rows: forward rows a sample. effective_batch: the rows of standard whose mean has the gradient variance
    that the configured batch has with this method.
    """

    keys: dict[str, Any]
    rows: int
    is_unbiased: bool
    variance: dict[str, float]
    ratio: dict[str, Ratio]
    effective_batch: float


def recommended(results: Mapping[str, MethodResult], batch_rows: int) -> str | None:
    """The name of the method to use; None if none is distinguishable from standard.

    Candidates are unbiased methods that fit the batch and whose gradient surely varies less than standard's,
    also under Adam as far as can be seen. The best has the highest lower end of its interval. Of those that
    it may equal, the simplest is recommended: fewest rows a sample, so more different samples, and then
    fewest keys.
    """
    candidates = {
        name: result
        for name, result in results.items()
        if result.is_unbiased
        and result.rows <= batch_rows
        and result.ratio["gradient"].sure_low > 1
        and result.ratio["adam"].high >= 1
    }
    if not candidates:
        return None
    best = max(candidates.values(), key=lambda result: result.ratio["gradient"].low).ratio["gradient"]
    as_good = {name: each for name, each in candidates.items() if each.ratio["gradient"].value >= best.low}
    return min(as_good, key=lambda name: (as_good[name].rows, len(as_good[name].keys)))


def recommend(results: Mapping[str, MethodResult], batch_rows: int, scale: Estimate | None) -> str:
    """The recommendation in plain words.

    Args:
        batch_rows: forward rows of the configured batch.
        scale: the noise scale of standard in forward rows; None if the batch's noise hides the gradient.
    """
    parts = [_choice(results, batch_rows), _need(batch_rows, scale), *_others(results)]
    return "\n\n".join(parts)


def _choice(results: Mapping[str, MethodResult], batch_rows: int) -> str:
    name = recommended(results, batch_rows)
    if name is None:
        return (
            "No unbiased method is distinguishable from standard: none surely has less gradient variance at "
            "equal forward rows. Keep what you have, or measure more samples."
        )
    result = results[name]
    by = result.ratio["gradient"]
    keys = yaml.safe_dump({"diffusion": {**PLAIN_KEYS, **result.keys}}, sort_keys=False)
    block = "\n".join(f"    {line}" for line in keys.splitlines())
    lines = [
        f"Use {name}. At equal forward rows it reduces the gradient's variance {by.value:.2f} times "
        f"(95% interval {by.low:.2f} to {by.high:.2f}; preconditioned as Adam does "
        f"{result.ratio['adam'].value:.2f} times): {batch_rows} rows count as {result.effective_batch:.0f} "
        f"rows of standard. Set these keys, and leave out other keys of masks and t:\n\n{block}"
    ]
    if result.rows > 1:
        samples = batch_rows / result.rows
        lines.append(
            f"A sample takes {result.rows} rows, so {batch_rows} rows are {samples:g} samples: set "
            "train.global_batch_size accordingly."
        )
    return "\n\n".join(lines)


def _need(batch_rows: int, scale: Estimate | None) -> str:
    """Whether noise limits the configured batch."""
    if scale is None:
        return (
            "Noise: standard's mean gradient cannot be told from 0 with so few samples. In a batch of "
            f"{batch_rows} rows noise is larger than the gradient."
        )
    size = f"{scale.value:.0f} rows of standard ({scale.low:.0f} to {scale.high:.0f})"
    if scale.high < batch_rows:
        return (
            f"Noise: it is as large as the gradient in a batch of {size}. The configured batch of "
            f"{batch_rows} rows is larger, so noise is not what limits a step; less variance changes little."
        )
    limit = "smaller, so noise limits a step" if scale.low > batch_rows else "about as large"
    return (
        f"Noise: it is as large as the gradient in a batch of {size}. The configured batch of {batch_rows} "
        f"rows is {limit}."
    )


def _others(results: Mapping[str, MethodResult]) -> list[str]:
    biased = {name: each.ratio["gradient"] for name, each in results.items() if not each.is_unbiased}
    return [
        f"Another objective, so not recommended by its variance: {name} ({by.value:.2f} times, "
        f"{by.low:.2f} to {by.high:.2f})."
        for name, by in biased.items()
        if name != STANDARD
    ]
