"""What the fine-tuning part says, in sentences. Better or worse is what an interval says, not a mean."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mdmscale.analysis.decision.comparison import difference, spread_ratio
from mdmscale.analysis.decision.part import WEIGHTS, Condition
from mdmscale.analysis.decision.stages import Results
from mdmscale.analysis.study.statistics import CONFIDENCE, Difference

T_SAMPLERS = ("stratified", "p_pots_paper", "p_pots_loss", "p_pots_gradient", "exact_gradient")
RAW = 0
Regime = tuple[str, float]
"""A schedule, and the largest gradient norm."""


@dataclass(frozen=True)
class Comparison:
    """A method against a reference: accuracy, nats a token, and spread over seeds as a share of its own."""

    method: str
    reference: str
    accuracy: Difference
    likelihood: Difference
    spread: Difference

    @property
    def word(self) -> str:
        if self.accuracy.low > 0:
            return "better"
        return "worse" if self.accuracy.high < 0 else "no difference seen"

    def text(self) -> str:
        return (
            f"{self.method} against {self.reference}: {points(self.accuracy)}, {self.word}; "
            f"NLL {signed(self.likelihood)}; spread {times(self.spread)}"
        )


@dataclass(frozen=True, eq=False)
class Regimes:
    """The final results by regime and arm."""

    results: dict[Condition, Results]

    @property
    def names(self) -> list[Regime]:
        return list(dict.fromkeys((each.schedule, each.clipping) for each in self.results))

    def of(self, regime: Regime) -> dict[str, Results]:
        return {
            condition.arm.name: results
            for condition, results in self.results.items()
            if (condition.schedule, condition.clipping) == regime
        }

    def compare(
        self, regime: Regime, method: str, reference: str, weights: int = RAW, confidence: float = CONFIDENCE
    ) -> Comparison | None:
        """None where the study has not both arms."""
        arms = self.of(regime)
        if method not in arms or reference not in arms or method == reference:
            return None
        first, second = arms[method], arms[reference]
        accuracies = first.accuracies(weights), second.accuracies(weights)
        return Comparison(
            method,
            reference,
            difference(*accuracies, confidence),
            difference(first.likelihoods(weights), second.likelihoods(weights), confidence),
            spread_ratio(*accuracies, confidence),
        )


def answers(regimes: Regimes) -> list[tuple[str, list[str]]]:
    """The study's questions with the sentences that answer them, one for each regime that has the arms."""
    return [
        ("Does MIRROR beat two independent rows?", _pairs(regimes, ["mirror"], "independent_2")),
        (
            "Do exact pairs beat two independent rows?",
            _pairs(regimes, ["exact_pair", "exact_pair_gradient"], "independent_2"),
        ),
        (
            "Do exact pairs beat twice the samples, at equal rows?",
            _pairs(regimes, ["exact_pair", "exact_pair_gradient"], "standard_2x"),
        ),
        ("Does any t-sampler change results?", _t_samplers(regimes)),
        ("Is the worst seed of a method above the best seed of standard?", _worst(regimes)),
        ("Does an average of the weights, or decay, do as much?", _first_things(regimes)),
    ]


def _pairs(regimes: Regimes, methods: Sequence[str], reference: str) -> list[str]:
    return [
        f"{described(regime)}, {WEIGHTS[weights]} weights: {found.text()}."
        for regime in regimes.names
        for weights in range(len(WEIGHTS))
        for method in methods
        if (found := regimes.compare(regime, method, reference, weights))
    ]


def _t_samplers(regimes: Regimes) -> list[str]:
    """Each against standard at one row, at a level at which all hold together (Bonferroni)."""
    strict = 1 - (1 - CONFIDENCE) / len(T_SAMPLERS)
    lines = []
    for regime in regimes.names:
        found = [regimes.compare(regime, name, "standard", RAW, strict) for name in T_SAMPLERS]
        known = [each for each in found if each is not None]
        if known:
            changed = [f"{each.method} ({each.word})" for each in known if each.word in ("better", "worse")]
            verdict = f"yes: {', '.join(changed)}" if changed else "none is seen to"
            detail = "; ".join(f"{each.method} {points(each.accuracy)}" for each in known)
            lines.append(f"{described(regime)}: {verdict} ({detail}; intervals hold together at 95%).")
    return lines


def _worst(regimes: Regimes) -> list[str]:
    lines = []
    for regime in regimes.names:
        arms = regimes.of(regime)
        for reference, label in (("standard", "equal samples"), ("standard_2x", "equal rows")):
            methods = compared_at(arms, reference)
            if reference not in arms or not methods:
                continue
            best = arms[reference].accuracies().of_seeds.max()
            worst = {name: arms[name].accuracies().of_seeds.min() for name in methods}
            above = [name for name, value in worst.items() if value > best]
            most = max(worst, key=lambda name: worst[name])
            lines.append(
                f"{described(regime)}, {label}: {', '.join(above) if above else 'none'}; the best seed of "
                f"{reference} has {best:.1%}, the highest worst seed is that of {most}, {worst[most]:.1%}."
            )
    return lines


def _first_things(regimes: Regimes) -> list[str]:
    lines = []
    for regime in regimes.names:
        standard = regimes.of(regime)["standard"]
        raw, averaged = (standard.accuracies(weights) for weights in range(len(WEIGHTS)))
        gain = difference(averaged, raw)
        lines.append(
            f"{described(regime)}: standard has {raw.mean:.1%}, with averaged weights {averaged.mean:.1%} "
            f"({points(gain)})."
        )
    return lines


def compared_at(arms: dict[str, Results], reference: str) -> list[str]:
    """The methods at the cost of the reference: as many samples a step (standard), or as many rows."""
    same = {
        "standard": lambda arm: arm.samples == 1,
        "standard_2x": lambda arm: arm.rows == 2,
    }[reference]
    return [
        name
        for name, each in arms.items()
        if each.condition.arm.kind == "method" and same(each.condition.arm)
    ]


def goal(regimes: Regimes) -> list[str]:
    """Whether exact pairs with gradient q reach what was hoped for: better at equal rows, half the spread."""
    lines = []
    for regime in regimes.names:
        found = regimes.compare(regime, "exact_pair_gradient", "standard_2x")
        if found:
            better = "reached" if found.accuracy.low > 0 else "not reached"
            half = "reached" if found.spread.mean <= 0.5 else "not reached"
            lines.append(
                f"{described(regime)}: better at equal rows {better} ({points(found.accuracy)}); at most "
                f"half the spread {half} ({times(found.spread)})."
            )
    return lines


def described(regime: Regime) -> str:
    schedule, clipping = regime
    return f"{schedule} learning rate, {f'clipped at {clipping:g}' if clipping else 'no clipping'}"


def points(difference: Difference) -> str:
    mean, low, high = (100 * each for each in (difference.mean, difference.low, difference.high))
    return f"{mean:+.1f} points ({low:+.1f} to {high:+.1f})"


def signed(difference: Difference) -> str:
    return f"{difference.mean:+.3f} ({difference.low:+.3f} to {difference.high:+.3f})"


def ratio(difference: Difference) -> str:
    if math.isnan(difference.mean):
        return "unknown"  # all seeds of one are alike
    return f"{difference.mean:.2f} ({difference.low:.2f} to {difference.high:.2f})"


def times(difference: Difference) -> str:
    return ratio(difference) if math.isnan(difference.mean) else f"times {ratio(difference)}"
