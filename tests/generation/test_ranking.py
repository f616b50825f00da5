"""The order of proposals: true differences count, rounding does not, and a factor commits what it says."""

import math

import pytest
import torch

from mdmscale.generation import GenerationOptions
from mdmscale.generation.ranking import ROUNDING, Scores, choose, rank, score


def places(logits: torch.Tensor, remasking: str) -> list[int]:
    """The place of each row of logits in the order of one text."""
    draws = torch.zeros(len(logits), dtype=torch.float64)
    scores = score(logits.double(), logits.argmax(dim=-1), draws, remasking)  # type: ignore[arg-type]
    return rank(torch.ones(1, len(logits), dtype=torch.bool), scores)[0].tolist()


@pytest.mark.parametrize("remasking", ["confidence", "margin", "entropy"])
@pytest.mark.parametrize("least", [0.01, 1.0, 20.0])
def test_true_differences_count_at_any_confidence(remasking: str, least: float) -> None:
    logits = torch.zeros(3, 4)
    logits[:, 1] = torch.tensor([least, least * 1.01, least * 1.02])
    assert places(logits, remasking) == [2, 1, 0]


def test_confidence_does_not_saturate() -> None:
    logits = torch.tensor([[50.0, 0.0], [60.0, 0.0]])
    assert places(logits, "confidence") == [1, 0]


@pytest.mark.parametrize("remasking", ["confidence", "margin", "entropy"])
@pytest.mark.parametrize("size", [1e-3, 1.0, 30.0])
def test_what_rounding_explains_is_a_tie_and_goes_to_the_left(remasking: str, size: float) -> None:
    """The same logits, each with an error of fp32's size of its own, as in another batch."""
    random = torch.Generator().manual_seed(0)
    logits = size * torch.randn(1, 50, generator=random).repeat(20, 1)
    errors = 1.5e-7 * logits.abs().max() * torch.randn(logits.shape, generator=random)
    assert places(logits + errors, remasking) == list(range(20))


def test_a_single_token_is_certain() -> None:
    logits = torch.tensor([[1.0, -math.inf], [2.0, -math.inf], [2.0, 1.0]])
    for remasking in ("confidence", "margin", "entropy"):
        assert places(logits, remasking) == [0, 1, 2]


def test_errors_are_bounds_on_what_rounding_changes() -> None:
    random = torch.Generator().manual_seed(1)
    for remasking in ("confidence", "margin", "entropy"):
        for size in (0.1, 3.0, 20.0):
            logits = size * torch.randn(50, 30, dtype=torch.float64, generator=random)
            noise = ROUNDING * logits.abs().amax(dim=-1, keepdim=True) / 4
            other = logits + noise * torch.randn(logits.shape, dtype=torch.float64, generator=random)
            draws = torch.zeros(50, dtype=torch.float64)
            one, two = (score(each, logits.argmax(-1), draws, remasking) for each in (logits, other))  # type: ignore[arg-type]
            assert ((one.ranking - two.ranking).abs() <= one.errors).double().mean() > 0.9


@pytest.mark.parametrize("factor", [0.05, 0.5, 1.0, 3.0])
def test_a_factor_commits_the_largest_number_that_is_safe(factor: float) -> None:
    random = torch.Generator().manual_seed(2)
    for size in range(1, 9):
        values = 1 - torch.rand(size, dtype=torch.float64, generator=random) ** 3
        is_open = torch.ones(1, size + 2, dtype=torch.bool)
        is_open[0, [0, -1]] = False
        scores = Scores(values, values.logit(), torch.zeros(size, dtype=torch.float64))
        chosen = choose(is_open, scores, GenerationOptions(factor=factor), torch.zeros(1, dtype=torch.int64))
        ordered = sorted(values.tolist(), reverse=True)
        safe = [n for n in range(1, size + 1) if (n + 1) * (1 - ordered[n - 1]) < factor]
        best = ordered[: max(safe, default=1)]
        assert sorted(values[chosen[0, 1:-1]].tolist(), reverse=True) == best
