"""A, B and C: the parts of one draw's variance that come from the mask, from t and from the data.

Under uniform t, by the law of total variance (arXiv 2511.18159):
    A = E_x int v dt,   B = E_x [int ||g||^2 dt - ||int g dt||^2],   C = Var_x int g dt,   A + B + C = Var(Y).
"""

from dataclasses import dataclass

import numpy as np

from mdmscale.analysis.variance.moments import Moments, SampleStatistics

NUM_BOOTSTRAPS = 1000


@dataclass(frozen=True)
class Estimate:
    """A value and the ends of its 95% interval."""

    value: float
    low: float
    high: float


def decompose(moments: Moments, widths: np.ndarray) -> dict[str, float]:
    """A, B and C of a single draw under uniform t. For gradients they are parts of the covariance's trace."""
    of_sample = float(widths @ moments.within @ widths)  # E_x ||int g dt||^2
    return {
        "A": float(widths @ (moments.single - moments.same_t)),
        "B": float(widths @ moments.same_t) - of_sample,
        "C": of_sample - float(widths @ moments.mean @ widths),
    }


def loss_decomposition(
    samples: list[SampleStatistics], means: np.ndarray, plain: np.ndarray, widths: np.ndarray, seed: int = 0
) -> dict[str, Estimate]:
    """A, B, C, their sum and the variance of plain draws, which should be equal, with bootstrap intervals.

    Args:
        samples: the loss's statistics of each sample.
        means: float64 [samples, K], each sample's mean loss in each cell.
        plain: float64 [samples, draws], losses at t uniform in [0, 1], which A, B and C do not use.
    """
    draws = np.random.default_rng(seed).integers(0, len(samples), (NUM_BOOTSTRAPS, len(samples)))
    columns = _columns(samples, means, plain, widths)
    point = _combine(columns, np.arange(len(samples)))
    replicates = [_combine(columns, chosen) for chosen in draws]
    estimates = {}
    for name, value in point.items():
        low, high = np.quantile([replicate[name] for replicate in replicates], [0.025, 0.975])
        estimates[name] = Estimate(value, float(low), float(high))
    return estimates


def _columns(
    samples: list[SampleStatistics], means: np.ndarray, plain: np.ndarray, widths: np.ndarray
) -> dict[str, np.ndarray]:
    """The scalars of each sample whose averages give A, B and C, each float64 [samples]."""
    return {
        "second": np.array([widths @ sample.single for sample in samples]),
        "same_t": np.array([widths @ sample.same_t for sample in samples]),
        "within": np.array([widths @ sample.within @ widths for sample in samples]),
        "own": np.array([widths @ sample.own @ widths for sample in samples]),
        "mean": means @ widths,
        "plain_second": (plain**2).mean(axis=1),
        "plain_mean": plain.mean(axis=1),
    }


def _combine(columns: dict[str, np.ndarray], chosen: np.ndarray) -> dict[str, float]:
    mean = {name: float(values[chosen].mean()) for name, values in columns.items()}
    count = len(chosen)

    def squared_mean(name: str, own: np.ndarray) -> float:
        """(E value)^2, without the bias of a squared average."""
        values = columns[name][chosen]
        return float((values.sum() ** 2 - own.sum()) / (count * (count - 1)))

    a = mean["second"] - mean["same_t"]
    b = mean["same_t"] - mean["within"]
    c = mean["within"] - squared_mean("mean", columns["own"][chosen])
    plain = columns["plain_mean"][chosen]
    total = mean["plain_second"] - squared_mean("plain_mean", plain**2)
    return {"A": a, "B": b, "C": c, "sum": a + b + c, "total": total}
