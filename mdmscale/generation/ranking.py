"""Which proposals a pass commits: how sure the model is of each, their order, and how many.

Scores are computed in float64 and not rounded, so that true differences count, however small. But proposals
whose scores differ by less than fp32 rounding of the logits explains tie, and go from left to right: their
order would otherwise depend on the batch. Such ties are common: without a prompt, all masks look alike.

Legend: masked = positions that a pass predicts; rows = texts; length = padded tokens; vocab = logit columns.
"""

from dataclasses import dataclass

import torch

from mdmscale.generation.options import GenerationOptions, Remasking

ROUNDING = 1e-6
"""Error of fp32 logits that the sums of another batch cause, in parts of the largest: 8 fp32 epsilons."""

DREAM_EPSILON = 1e-10
"""Dream's entropy is that of log(p + 1e-10); it matters below an entropy of about 1e-8."""


@dataclass(frozen=True)
class Scores:
    """How sure a pass is of its proposals. All tensors are float64 [masked]."""

    values: torch.Tensor  # the probability, the margin, minus the entropy, or a random number
    ranking: torch.Tensor  # rises with the value; of a probability its log-odds, which do not saturate at 1
    errors: torch.Tensor  # by how much rounding of the logits may change the ranking


def score(logits: torch.Tensor, tokens: torch.Tensor, uniforms: torch.Tensor, remasking: Remasking) -> Scores:
    """Score the proposed tokens.

    Args:
        logits: float64 [masked, vocab], -inf for tokens that cannot be sampled.
        tokens: the proposed tokens, int64 [masked].
        uniforms: float64 [masked] in [0, 1), the values of random remasking.
    """
    if remasking == "random":
        return Scores(uniforms, uniforms, torch.zeros_like(uniforms))
    rounding = ROUNDING * logits.abs().nan_to_num(posinf=0).amax(dim=-1)
    match remasking:
        case "confidence":
            log_odds = _log_odds(logits, tokens)
            return Scores(log_odds.sigmoid(), log_odds, rounding)
        case "margin":
            log_odds = _log_odds(logits, logits.argmax(dim=-1))
            first, not_first = log_odds.sigmoid(), (-log_odds).sigmoid()
            best = logits.topk(2, dim=-1).values
            second = first * (best[:, 1] - best[:, 0]).exp()
            return Scores(first - second, -(not_first + second).log(), first * rounding)
        case "entropy":
            log_p = logits.log_softmax(dim=-1)
            p = log_p.exp()
            values = (p * (p + DREAM_EPSILON).log()).sum(dim=-1)
            deviations = (p * (log_p.clamp(min=-1e9) - values[:, None]).abs()).sum(dim=-1)
            return Scores(values, values, deviations * rounding)
    raise AssertionError(remasking)


def _log_odds(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """log(p / (1 - p)) of a token of each position, [masked], without cancellation where p is close to 1."""
    at = tokens[:, None]
    return logits.gather(1, at).squeeze(1) - logits.scatter(1, at, -torch.inf).logsumexp(dim=-1)


def shuffle(scores: Scores, uniforms: torch.Tensor, temperature: float) -> Scores:
    """Add Gumbel noise: the best n are then n draws without replacement from softmax(value / temperature).

    Args:
        uniforms: float64 [masked] in [0, 1).
    """
    noise = -(-uniforms.clamp(min=torch.finfo(torch.float64).tiny).log()).log()
    return Scores(scores.values, scores.values / temperature + noise, torch.zeros_like(noise))


def rank(is_open: torch.Tensor, scores: Scores) -> torch.Tensor:
    """The place of each open position in its row's order, from 0: int64 [rows, length].

    Positions whose neighbour in the order is within the error of either form one group, from left to right.
    """
    ranking = _spread(is_open, scores.ranking, -torch.inf)  # [rows, length]
    errors = _spread(is_open, scores.errors, 0.0)
    order = ranking.argsort(dim=1, descending=True, stable=True)
    ordered, error = ranking.gather(1, order), errors.gather(1, order)
    gaps = ordered[:, :-1] - ordered[:, 1:]  # nan between two of the same infinity, which tie
    is_apart = gaps > torch.maximum(error[:, :-1], error[:, 1:])
    groups = torch.zeros_like(order)
    groups[:, 1:] = is_apart.cumsum(dim=1)
    group_of = torch.empty_like(groups).scatter_(1, order, groups)
    return group_of.argsort(dim=1, stable=True).argsort(dim=1)


def choose(
    is_open: torch.Tensor, scores: Scores, options: GenerationOptions, num_commits: torch.Tensor
) -> torch.Tensor:
    """The open positions to commit, bool [rows, length]: at least the best of each row that has any.

    Args:
        num_commits: int64 [rows], which the schedule gives; a threshold or a factor replaces it.
    """
    places = rank(is_open, scores)
    if options.threshold is None and options.factor is None:
        return is_open & (places < num_commits[:, None])
    values = _spread(is_open, scores.values, -torch.inf)
    if options.threshold is not None:
        return is_open & ((values >= options.threshold) | (places == 0))
    assert options.factor is not None
    # Confidence falls with the place, so that the condition holds up to the largest number.
    numbers = places + 1
    is_safe = is_open & ((numbers + 1) * (1 - values) < options.factor)
    num_safe = (numbers * is_safe).amax(dim=1, keepdim=True)  # [rows, 1]
    return is_open & (places < num_safe.clamp(min=1))


def _spread(is_open: torch.Tensor, values: torch.Tensor, elsewhere: float) -> torch.Tensor:
    """`values` [masked] at their positions, float64 [rows, length]."""
    spread = torch.full(is_open.shape, elsewhere, dtype=torch.float64, device=is_open.device)
    spread[is_open] = values
    return spread
