"""The objective by counts: how likely a mask of l tokens is, and what the objective weighs it with.

A Bernoulli mask of n eligible tokens at the rate r(t) is a uniformly random set S of l ~ Bin(n, r) tokens. So

    int w(t) E_m l(x, t, m) dt  =  (1/n) sum over l = 1..n of  A_l  E over |S| = l of sum_{i in S} CE_i(x, S)
    A_l  =  int w(t) C(n, l) r^(l-1) (1 - r)^(n-l) dt

(for w = 1, A_l = P(Bin(n, eps) < l) / (l (1 - eps)), which tends to 1 / l). t need not be drawn at all. And
where it is drawn from p, the mask has the probability P_l = int p(t) C(n, l) r^l (1 - r)^(n-l) dt, and the
weight A_l / (n P_l) is the conditional expectation of w / (n r p) given the mask. So for independent rows it
has the same expectation and never more variance (Rao-Blackwell).
"""

import numpy as np

from mdmscale.diffusion.density import DensityTable
from mdmscale.diffusion.loss_weight import LossWeight
from mdmscale.diffusion.schedule import mask_rate


def count_weight(count: int, n: int, loss_weight: LossWeight, density: DensityTable, eps: float) -> float:
    """A_l / P_l: the weight of a Bernoulli mask of `count` = l >= 1 of n tokens, with t ~ `density`."""
    return objective_weight(count, n, loss_weight, eps) / count_probability(count, n, density, eps)


def objective_weight(count: int, n: int, loss_weight: LossWeight, eps: float) -> float:
    """A_l of the objective, for `count` = l in 1..n."""
    return _integral(loss_weight.edges, loss_weight.values, count, n, eps, loss_weight.power - 1)


def count_probability(count: int, n: int, density: DensityTable, eps: float) -> float:
    """P_l: the probability that a Bernoulli mask has `count` = l tokens, with t ~ `density`."""
    return _integral(density.edges, density.density, count, n, eps, 0)


def _integral(edges: np.ndarray, values: np.ndarray, count: int, n: int, eps: float, power: int) -> float:
    """int values(t) C(n, l) r^(l + power) (1 - r)^(n - l) dt, for l = `count` and power -1 or 0.

    With r for t it is an incomplete beta function: C(n, l) B(l, n - l + 1) = 1 / l, and C(n, l)
    B(l + 1, n - l + 1) = 1 / (n + 1).
    """
    from scipy.special import betainc  # late, because its import takes longer than that of all else here

    below = betainc(count + power + 1, n - count + 1, mask_rate(edges, eps))  # [cells + 1]
    whole = 1 / count if power else 1 / (n + 1)
    return float(values @ np.diff(below)) * whole / (1 - eps)
