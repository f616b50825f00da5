"""Proposals compared with their definitions: the distribution of tokens, and each score by hand."""

import numpy as np
import pytest
import torch
from scipy import stats

from mdmscale.generation import GenerationOptions
from mdmscale.generation.sampling import LAST, choose_tokens, propose

NONE = torch.tensor([], dtype=torch.int64)


def uniforms(masked: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random((masked, 2)))


def expected_distribution(logits: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    """The definition, computed token by token."""
    probabilities = (logits.double() / temperature).softmax(-1)
    kept, mass = torch.zeros_like(probabilities), 0.0
    for token in probabilities.argsort(descending=True).tolist():
        if mass < top_p:
            kept[token] = probabilities[token]
        mass += float(probabilities[token])
    return kept / kept.sum()


@pytest.mark.parametrize("temperature, top_p", [(1.0, 1.0), (0.5, 1.0), (2.0, 0.8), (1.0, 0.3), (1.0, 1e-9)])
def test_tokens_follow_the_models_distribution(temperature: float, top_p: float) -> None:
    logits = torch.tensor([0.3, -1.0, 2.0, 1.0, 0.0, -3.0])
    draws = 20_000
    chosen = choose_tokens(logits.double().repeat(draws, 1), uniforms(draws)[:, 0], temperature, top_p)
    expected = expected_distribution(logits, temperature, top_p).numpy()
    counts = np.bincount(chosen.numpy(), minlength=6)
    assert not counts[expected == 0].any()
    possible = expected > 0
    if possible.sum() > 1:
        assert stats.chisquare(counts[possible], draws * expected[possible]).pvalue > 1e-4


def test_no_uniform_reaches_a_token_of_no_probability() -> None:
    logits = torch.tensor([-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]).double()
    ends = torch.tensor([0.0, 0.5, np.nextafter(0.5, 0), np.nextafter(1.0, 0)], dtype=torch.float64)
    for top_p in (1.0, 0.99):
        chosen = choose_tokens(logits.repeat(len(ends), 1), ends, 1.0, top_p)
        assert chosen.tolist() == [1, 3, 1, 3]


def test_a_tiny_temperature_is_the_likeliest_token() -> None:
    logits = torch.tensor([[500.0, 499.0, -2.0]]).double()
    assert choose_tokens(logits, uniforms(1)[:, 0], 1e-6, 1.0).tolist() == [0]


def test_scores_are_of_the_models_own_distribution() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, 5.0], [0.0, 0.0, 3.0, -1.0]])
    banned = torch.tensor([3])
    p = logits[:, :3].double().softmax(-1)
    draws = uniforms(2)
    expected = {
        "confidence": torch.stack([p[0, 0], p[1, 2]]),
        "margin": torch.stack([p[0, 0] - p[0, 1], p[1, 2] - p[1, 0]]),
        "entropy": (p * p.log()).sum(-1),
        "random": draws[:, 1],
    }
    for remasking, scores in expected.items():
        options = GenerationOptions(remasking=remasking)  # type: ignore[arg-type]
        tokens, given = propose(logits, draws, options, banned, NONE)
        assert tokens.tolist() == [0, 2]
        torch.testing.assert_close(given, scores, atol=1e-5, rtol=0)


def test_confidence_is_that_of_the_drawn_token() -> None:
    logits = torch.zeros(200, 4)
    logits[:, 0] = 1.0
    tokens, scores = propose(logits, uniforms(200), GenerationOptions(temperature=2.0), NONE, NONE)
    p = logits[0].double().softmax(-1)
    assert len(set(tokens.tolist())) == 4
    torch.testing.assert_close(scores, p[tokens], atol=1e-5, rtol=0)


def test_eos_may_come_late_or_never() -> None:
    logits = torch.tensor([[0.0, 9.0, 1.0], [2.0, 0.0, 1.0]])
    eos = torch.tensor([1])
    results = {
        eos_option: propose(logits, uniforms(2), GenerationOptions(eos=eos_option), NONE, eos)  # type: ignore[arg-type]
        for eos_option in ("stop", "late", "never")
    }
    assert results["stop"][0].tolist() == [1, 0] and results["stop"][1].argmax() == 0
    assert results["late"][0].tolist() == [1, 0] and results["late"][1][0] == LAST
    assert results["never"][0].tolist() == [2, 0]


def test_rounding_of_fp32_decides_no_order() -> None:
    logits = torch.tensor([[9.0, 0.0, 0.0]]).repeat(2, 1)
    logits[1, 0] += 1e-6
    _, scores = propose(logits, uniforms(2), GenerationOptions(), NONE, NONE)
    assert scores[0] == scores[1]
