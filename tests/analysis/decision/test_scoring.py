"""Scores of stacked models: the likelihood against every mask, and the order of greedy decoding."""

import numpy as np
import pytest
import torch
from analysis.decision.small import SHAPE

from mdmscale.analysis.decision.scoring import greedy_is_right, likelihood, likelihood_masks
from mdmscale.analysis.decision.stacked_loss import cross_entropies
from mdmscale.analysis.decision.stacked_model import StackedModel
from mdmscale.evaluation.likelihood.masks import enumerated

IS_ANSWER = np.array([False, True, True, False, True, True])


@pytest.fixture
def model() -> StackedModel:
    return StackedModel.fresh(SHAPE, [0, 1])


def texts(num: int) -> np.ndarray:
    return np.random.default_rng(1).integers(SHAPE.mask_token_id, size=(num, len(IS_ANSWER)))


def test_with_enough_rows_the_likelihood_is_the_bound_over_every_mask(model: StackedModel) -> None:
    questions = texts(3)
    found = likelihood(model, questions, IS_ANSWER, False, num_rows=16)
    every = enumerated(4)
    for number, question in enumerate(questions):
        total = np.zeros(2)
        for mask, weight in zip(every.masks, every.weights, strict=True):
            placed = torch.zeros(len(IS_ANSWER), dtype=torch.bool)
            placed[torch.from_numpy(IS_ANSWER)] = torch.from_numpy(mask)
            shape = (2, 1, len(IS_ANSWER))
            losses = cross_entropies(model, torch.from_numpy(question).expand(shape), placed.expand(shape))
            total += weight * (losses[:, 0] * placed).sum(dim=-1).detach().numpy()
        np.testing.assert_allclose(found[:, number], total / 4, rtol=1e-5)


def test_fewer_rows_have_the_same_mean() -> None:
    """Each set of k tokens of 6 is in the masks as often as the bound says, in the mean over questions."""
    losses = np.random.default_rng(0).random(6)
    every, few = enumerated(6), [likelihood_masks(6, 8, question) for question in range(3000)]
    bound = every.weights @ (every.masks @ losses)
    estimates = [rows.weights @ (rows.masks @ losses) for rows in few]
    assert np.mean(estimates) == pytest.approx(bound, abs=4 * np.std(estimates) / np.sqrt(len(few)))


def test_the_likelihood_of_an_autoregressive_model_is_the_chain_rule(model: StackedModel) -> None:
    questions = texts(2)
    found = likelihood(model, questions, IS_ANSWER, True, num_rows=8)
    tokens = torch.from_numpy(questions).expand(2, 2, -1)
    shares = model.logits(tokens, is_causal=True).log_softmax(dim=-1).detach()
    wanted = np.zeros((2, 2))
    for place in np.flatnonzero(IS_ANSWER):
        chosen = shares[:, :, place - 1].gather(-1, tokens[:, :, place, None])
        wanted -= chosen[..., 0].numpy() / 4
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


class Copying:
    """A model that is right where the token before is right, and sure of it only there; token 9 elsewhere."""

    shape = SHAPE
    num_lanes = 1

    def __init__(self, is_causal: bool) -> None:
        self.seen: list[list[int]] = []
        self.is_causal = is_causal

    def logits(self, tokens: torch.Tensor, first: int = 0, is_causal: bool = False) -> torch.Tensor:
        assert is_causal == self.is_causal
        self.seen.append(tokens[0, 0].tolist())
        before = tokens if is_causal else tokens.roll(1, dims=-1)
        known = before != SHAPE.mask_token_id
        right = (before + 1) % SHAPE.mask_token_id  # each token is the one before it plus one
        logits = torch.zeros(*tokens.shape, SHAPE.vocab_size)
        logits[..., 9] = 1.0
        logits[..., SHAPE.mask_token_id] = 50.0  # never chosen
        logits.scatter_add_(-1, right[..., None], 9.0 * known[..., None].float())
        return logits[:, :, first:]


@pytest.mark.parametrize("is_causal", [False, True])
def test_decoding_commits_the_surest_token_first(is_causal: bool) -> None:
    model = Copying(is_causal)
    right, wrong = [3, 4, 5, 6, 7, 8], [3, 4, 5, 6, 7, 2]
    found = greedy_is_right(model, np.array([right, wrong]), IS_ANSWER, is_causal)  # type: ignore[arg-type]
    assert found.tolist() == [[True, False]]
    if not is_causal:
        mask = SHAPE.mask_token_id
        assert model.seen[0] == [3, mask, mask, 6, mask, mask]
        assert len(model.seen) == 4, "one token a step"
