"""Proposals compared with their definitions: the distribution of tokens, and each score by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from mdmscale.generation import GenerationOptions
from mdmscale.generation.sampling import LAST, choose_tokens, propose, restrict

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
    kept = restrict(logits.double().repeat(draws, 1), temperature, top_p)
    chosen = choose_tokens(kept, uniforms(draws)[:, 0], temperature)
    expected = expected_distribution(logits, temperature, top_p).numpy()
    counts = np.bincount(chosen.numpy(), minlength=6)
    assert not counts[expected == 0].any()
    possible = expected > 0
    if possible.sum() > 1:
        assert stats.chisquare(counts[possible], draws * expected[possible]).pvalue > 1e-4


def test_llada_s_gumbel_noise_has_the_same_distribution() -> None:
    """Its formula, with a draw for each token of the vocabulary: argmax of exp(logits) / (-log u)^T."""
    logits, draws = torch.tensor([0.3, -1.0, 2.0, 1.0, 0.0, -3.0]).double(), 20_000
    noise = torch.from_numpy(np.random.default_rng(1).random((draws, 6)))
    counts = np.bincount((logits.exp() / (-noise.log()) ** 0.7).argmax(dim=-1).numpy(), minlength=6)
    expected = expected_distribution(logits, 0.7, 1.0).numpy()
    assert stats.chisquare(counts, draws * expected).pvalue > 1e-4
    ours = choose_tokens(restrict(logits.repeat(draws, 1), 0.7), uniforms(draws)[:, 0], 0.7)
    assert stats.chisquare(np.bincount(ours.numpy(), minlength=6), draws * expected).pvalue > 1e-4


def test_no_uniform_reaches_a_token_of_no_probability() -> None:
    logits = torch.tensor([-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]).double()
    ends = torch.tensor([0.0, 0.5, np.nextafter(0.5, 0), np.nextafter(1.0, 0)], dtype=torch.float64)
    for top_p in (1.0, 0.99):
        chosen = choose_tokens(restrict(logits.repeat(len(ends), 1), 1.0, top_p), ends, 1.0)
        assert chosen.tolist() == [1, 3, 1, 3]


def test_a_tiny_temperature_is_the_likeliest_token() -> None:
    logits = torch.tensor([[500.0, 499.0, -2.0]]).double()
    assert choose_tokens(restrict(logits, 1e-6), uniforms(1)[:, 0], 1e-6).tolist() == [0]


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
        torch.testing.assert_close(given.values, scores, atol=1e-8, rtol=0)


def test_confidence_is_that_of_the_drawn_token() -> None:
    logits = torch.zeros(200, 4)
    logits[:, 0] = 1.0
    tokens, scores = propose(logits, uniforms(200), GenerationOptions(temperature=2.0), NONE, NONE)
    p = logits[0].double().softmax(-1)
    assert len(set(tokens.tolist())) == 4
    torch.testing.assert_close(scores.values, p[tokens], atol=1e-12, rtol=0)


def test_eos_may_come_late_or_never() -> None:
    logits = torch.tensor([[0.0, 9.0, 1.0], [2.0, 0.0, 1.0]])
    eos = torch.tensor([1])
    results = {
        eos_option: propose(logits, uniforms(2), GenerationOptions(eos=eos_option), NONE, eos)  # type: ignore[arg-type]
        for eos_option in ("stop", "late", "never")
    }
    assert results["stop"][0].tolist() == [1, 0] and results["stop"][1].ranking.argmax() == 0
    assert results["late"][0].tolist() == [1, 0] and results["late"][1].ranking[0] == LAST
    assert results["never"][0].tolist() == [2, 0]


def test_scores_may_be_of_the_distribution_that_tokens_are_drawn_from() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0, -1.0]])
    options = GenerationOptions(scores="sampling", temperature=0.5, top_p=0.99, top_k=2)
    p = expected_distribution(logits[0], 0.5, 0.99)[:2]
    p = p / p.sum()
    for remasking, expected in (
        ("margin", p[0] - p[1]),
        ("entropy", (p * p.log()).sum()),
    ):
        _, scores = propose(logits, uniforms(1), replace(options, remasking=remasking), NONE, NONE)
        torch.testing.assert_close(scores.values[0], expected, atol=1e-8, rtol=0)
    tokens, scores = propose(logits.repeat(50, 1), uniforms(50), options, NONE, NONE)
    assert set(tokens.tolist()) == {0, 1}
    torch.testing.assert_close(scores.values, p[tokens], atol=1e-12, rtol=0)


def test_top_k_keeps_the_likeliest_of_those_that_top_p_keeps() -> None:
    logits = torch.tensor([[0.0, 4.0, 2.0, 3.0, 2.0]]).double()
    for top_k, kept in ((1, [1]), (2, [1, 3]), (3, [1, 2, 3, 4]), (9, [0, 1, 2, 3, 4])):
        assert restrict(logits, top_k=top_k)[0].isfinite().nonzero().flatten().tolist() == kept
    assert restrict(logits, top_p=0.5, top_k=3)[0].isfinite().nonzero().flatten().tolist() == [1]


def test_an_order_temperature_draws_without_replacement_from_the_softmax_of_scores() -> None:
    logits = torch.tensor([[4.0, 0.0], [3.0, 0.0], [1.0, 0.0]])
    options = GenerationOptions(order_temperature=0.2)
    draws = 6000
    _, scores = propose(logits.repeat(draws, 1), uniforms(3 * draws), options, NONE, NONE)
    order = scores.ranking.view(draws, 3).argsort(dim=1, descending=True)
    weights = (logits.double().softmax(-1)[:, 0] / 0.2).exp().tolist()
    pairs = [(first, second) for first in range(3) for second in range(3) if first != second]
    expected = [
        draws * weights[a] / sum(weights) * weights[b] / (sum(weights) - weights[a]) for a, b in pairs
    ]
    counts = [int(((order[:, 0] == a) & (order[:, 1] == b)).sum()) for a, b in pairs]
    assert stats.chisquare(counts, expected).pvalue > 1e-4
