"""Steps that are skipped: they leave weights, p(t) and baselines as they are, and the run goes on.

A step is skipped if its loss or gradient is not finite. With `train.skip_spikes: Z` spikes are skipped, too:
steps whose controlled loss or gradient norm lies more than Z robust standard deviations above the median of
the recent ones. Every rank decides alike, from numbers that are sums over all ranks.
"""

import math
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

WINDOW = 100  # steps: those that a spike is compared with, and those in which skipped steps are counted
WARM_UP = 20  # steps before anything counts as a spike
MOST_NOT_FINITE = 10  # in a window; then the weights or the data are at fault, and the run ends
NOT_FINITE, SPIKE = "not finite", "spike"
SHOWN = 5  # skipped steps that are named in the closing words

_MAD_OF_A_NORMAL = 0.6745  # median absolute deviation of a normal distribution, in standard deviations


class SkippedSteps:
    """Decides which steps are skipped, and counts them. `threshold` is train.skip_spikes.

    The window includes skipped steps. So where the loss moves to another level for good, that level is soon
    the median, and no more steps are skipped.
    """

    def __init__(self, threshold: float | None) -> None:
        self.threshold = threshold
        self.losses: deque[float] = deque(maxlen=WINDOW)  # controlled, of recent steps with finite values
        self.norms: deque[float] = deque(maxlen=WINDOW)
        self.counts = {NOT_FINITE: 0, SPIKE: 0}  # over the run
        self.recent: list[tuple[int, str]] = []  # step and reason of those in the window
        self.last: deque[int] = deque(maxlen=SHOWN)

    def reason(self, loss: float, norm: float) -> str | None:
        """Why a step with this controlled loss and gradient norm is skipped; None if it is not."""
        if not math.isfinite(loss) or not math.isfinite(norm):
            return NOT_FINITE
        if self.threshold is None:
            return None
        z = max(robust_z(loss, self.losses), robust_z(norm, self.norms))
        return SPIKE if z > self.threshold else None

    def observe(self, step: int, loss: float, norm: float, reason: str | None) -> dict[str, Any]:
        """Add a step. Returns its metrics.

        skipped: the reason; only in the records of skipped steps. skipped_recently: skipped ones of the last
        100 steps.

        Raises:
            FloatingPointError: if many steps of the window were not finite.
        """
        if reason != NOT_FINITE and self.threshold is not None:
            self.losses.append(loss)
            self.norms.append(norm)
        self.recent = [each for each in self.recent if each[0] > step - WINDOW]
        if reason is not None:
            self.counts[reason] += 1
            self.recent.append((step, reason))
            self.last.append(step)
        num_not_finite = sum(each == NOT_FINITE for _, each in self.recent)
        if reason == NOT_FINITE and num_not_finite == MOST_NOT_FINITE:
            raise FloatingPointError(
                f"the loss or the gradient was not finite in {MOST_NOT_FINITE} of the last {WINDOW} steps, "
                f"{step} the last of them; resume from the last checkpoint, for example with a lower "
                "optimizer.lr, or leave the samples of these steps out (data.skip)"
            )
        return {"skipped_recently": len(self.recent)} | ({} if reason is None else {"skipped": reason})

    def describe(self) -> str | None:
        """The skipped steps of the run in words; None if there were none."""
        total = sum(self.counts.values())
        if not total:
            return None
        named = ", ".join(map(str, self.last))
        reasons = " and ".join(f"{number} {name}" for name, number in self.counts.items() if number)
        return f"{total} steps ({reasons}), the last {named}" if total > 1 else f"step {named} ({reasons})"

    def state_dict(self) -> dict[str, Any]:
        return {
            "losses": list(self.losses),
            "norms": list(self.norms),
            "counts": self.counts,
            "recent": [list(each) for each in self.recent],
            "last": list(self.last),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.losses = deque(state["losses"], maxlen=WINDOW)
        self.norms = deque(state["norms"], maxlen=WINDOW)
        self.counts = {NOT_FINITE: state["counts"][NOT_FINITE], SPIKE: state["counts"][SPIKE]}
        self.recent = [(step, reason) for step, reason in state["recent"]]
        self.last = deque(state["last"], maxlen=SHOWN)


def robust_z(value: float, recent: Sequence[float]) -> float:
    """How many standard deviations `value` lies above the median of `recent`, from their median deviation.

    0 as long as there are few of them, and where most of them are equal.
    """
    if len(recent) < WARM_UP:
        return 0.0
    median = float(np.median(recent))
    deviation = float(np.median(np.abs(np.asarray(recent) - median))) / _MAD_OF_A_NORMAL
    return (value - median) / deviation if deviation else 0.0
