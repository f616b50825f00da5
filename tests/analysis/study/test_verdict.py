"""The sentences of a study: better, worse, undecided, and whether noise limits the task."""

import numpy as np

from mdmscale.analysis.study.results import RunResult
from mdmscale.analysis.study.verdict import answer, compare, control_answer, worst_against_best

SEEDS = (1, 2, 3)


def runs(
    method: str, *accuracies: float, seeds: tuple[int, ...] = SEEDS, items: int = 1000
) -> list[RunResult]:
    """Runs whose right answers are the first ones of the test."""
    return [
        RunResult(
            method, seed, tuple(map(float, np.arange(items) < round(accuracy * items))), 1.0, 0.5, 10, 80, 3
        )
        for seed, accuracy in zip(seeds, accuracies, strict=False)
    ]


STANDARD = runs("standard", 0.50, 0.51, 0.52)


def test_a_steady_difference_is_called() -> None:
    results = [*STANDARD, *runs("good", 0.60, 0.61, 0.62), *runs("bad", 0.40, 0.41, 0.42)]
    sentence = answer(results, "standard")
    assert sentence.startswith("Better than standard: good by +10.0 points (+")
    assert "worse than standard: bad by -10.0 points (-" in sentence
    assert "undecided" not in sentence and sentence.endswith(".")


def test_what_chance_explains_is_undecided_with_what_could_be_told() -> None:
    results = [*runs("standard", 0.42, 0.50, 0.58), *runs("other", 0.59, 0.43, 0.51)]
    assert answer(results, "standard") == (
        "Undecided: other, as 3 seeds with a spread of 8.0 points cannot tell differences below 18.1 points."
    )


def test_one_seed_decides_nothing() -> None:
    results = [*runs("standard", 0.1, seeds=(1,)), *runs("other", 0.9, seeds=(1,))]
    assert answer(results, "standard").startswith("Undecided: a single seed says nothing about other seeds")
    assert answer(STANDARD, "standard") == ""


def test_runs_are_paired_by_seed() -> None:
    """Whatever order they finish in; a seed that only one of them has is left out."""
    other = runs("other", 0.62, 0.61, 0.60, 0.1, seeds=(3, 2, 1, 9))
    (found,) = compare([*STANDARD, *other], "standard")
    assert found.num_seeds == 3 and abs(found.interval.mean - 0.1) < 1e-12
    assert not compare([*STANDARD, *runs("apart", 0.5, seeds=(8,))], "standard")


def test_many_methods_must_be_surer() -> None:
    one = [*STANDARD, *runs("a", 0.56, 0.54, 0.58)]
    many = [*one, *(run for name in "bcdefgh" for run in runs(name, 0.5, 0.51, 0.52))]
    (alone,) = compare(one, "standard")
    among = compare(many, "standard")[0]
    assert alone.strict == alone.interval == among.interval
    assert among.strict.high - among.strict.low > alone.strict.high - alone.strict.low


def test_the_control_says_whether_noise_limits_the_task() -> None:
    helped = control_answer([*STANDARD, *runs("control", 0.70, 0.71, 0.72)], "standard")
    assert "by +20.0 points" in helped and "limits this task, and methods that lower it can help" in helped
    same = control_answer([*STANDARD, *runs("control", 0.51, 0.50, 0.52)], "standard")
    assert "so noise is not seen to limit this task (as 3 seeds with a spread of 1.0 points cannot" in same
    worse = control_answer([*STANDARD, *runs("control", 0.30, 0.31, 0.32)], "standard")
    assert "less noise does not help here" in worse
    single = control_answer(
        [*runs("standard", 0.5, seeds=(1,)), *runs("control", 0.9, seeds=(1,))], "standard"
    )
    assert "a single seed cannot tell" in single
    assert control_answer(STANDARD, "standard") == ""


def test_the_control_is_no_method() -> None:
    results = [*STANDARD, *runs("control", 0.7, 0.71, 0.72)]
    assert answer(results, "standard") == "" and worst_against_best(results, "standard") == ""


def test_the_worst_of_a_method_against_the_best_of_the_reference() -> None:
    results = [*STANDARD, *runs("good", 0.6, 0.61, 0.55)]
    assert worst_against_best(results, "standard") == "best seed of standard 52.0%; worst seed of good 55.0%"
