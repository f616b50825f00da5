"""From logits to tokens: the token that each masked position proposes, and which proposals come first.

Legend: masked = positions that a step predicts; vocab = logit columns.
"""

import torch

from mdmscale.generation.options import GenerationOptions

SAMPLING_CHUNK = 128
"""How many masked positions are sampled at once. It bounds the float64 probabilities to [128, vocab]."""

SCORE_DECIMALS = 5
"""Scores are rounded, so that fp32 rounding errors, which depend on the batch, rarely decide an order."""

LAST = -1e30  # the score of tokens that are committed after all others


def propose(
    logits: torch.Tensor,
    uniforms: torch.Tensor,
    options: GenerationOptions,
    banned_ids: torch.Tensor,
    eos_ids: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A token for every masked position, and its score. The highest scores are committed first.

    Args:
        logits: [masked, vocab], on any device.
        uniforms: float64 [masked, 2] in [0, 1): one for the token, one for the order of random remasking.
        banned_ids: int64 [banned], tokens that must not be sampled, such as the mask.
        eos_ids: int64 [eos], the tokens that `options.eos` speaks of.

    Returns:
        Token ids, int64 [masked], and scores, float64 [masked].
    """
    if options.eos == "never":
        banned_ids = torch.cat([banned_ids, eos_ids])
    tokens, scores = [], []
    for part, draws in zip(logits.split(SAMPLING_CHUNK), uniforms.split(SAMPLING_CHUNK), strict=True):
        part = part.to(torch.float64, copy=True)  # [chunk, vocab]
        part[:, banned_ids] = -torch.inf
        chosen = choose_tokens(part, draws[:, 0], options.temperature, options.top_p)
        tokens.append(chosen)
        scores.append(_scores(part, chosen, draws[:, 1], options.remasking).round(decimals=SCORE_DECIMALS))
    all_tokens, all_scores = torch.cat(tokens), torch.cat(scores)
    if options.eos == "late":
        all_scores[torch.isin(all_tokens, eos_ids)] = LAST
    return all_tokens, all_scores


def choose_tokens(
    logits: torch.Tensor, uniforms: torch.Tensor, temperature: float, top_p: float
) -> torch.Tensor:
    """Tokens drawn from softmax(logits / temperature) over the likeliest of mass `top_p`. int64 [masked].

    Each token inverts the cumulative distribution at one uniform. Gumbel noise on the logits would give the
    same distribution, but needs one draw for each vocabulary entry, and in fp32 its distribution is wrong
    (arXiv 2409.02908).
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    # Subtract the largest logit first, as dividing by a tiny temperature would overflow.
    probabilities = ((logits - logits.amax(dim=-1, keepdim=True)) / temperature).softmax(dim=-1)
    if top_p == 1:
        return _invert(probabilities.cumsum(dim=-1), uniforms)
    ordered, token_ids = probabilities.sort(dim=-1, descending=True, stable=True)
    mass = ordered.cumsum(dim=-1)
    kept = torch.where(mass - ordered < top_p, ordered, 0.0)  # the token that reaches top_p is kept
    return token_ids.gather(1, _invert(kept.cumsum(dim=-1), uniforms)[:, None]).squeeze(1)


def _invert(cumulative: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """The first index whose cumulative sum [masked, vocab] exceeds the share `uniforms` of the total."""
    whole = cumulative[:, -1]
    levels = torch.minimum(uniforms * whole, torch.nextafter(whole, torch.zeros_like(whole)))
    return torch.searchsorted(cumulative, levels[:, None], right=True).squeeze(1)


def _scores(
    logits: torch.Tensor, tokens: torch.Tensor, uniforms: torch.Tensor, remasking: str
) -> torch.Tensor:
    """float64 [masked], from the model's own distribution at temperature 1."""
    if remasking == "random":
        return uniforms
    probabilities = logits.softmax(dim=-1)
    match remasking:
        case "confidence":
            return probabilities.gather(1, tokens[:, None]).squeeze(1)
        case "margin":
            first, second = probabilities.topk(2, dim=-1).values.unbind(dim=-1)
            return first - second
        case "entropy":
            return -torch.special.entr(probabilities).sum(dim=-1)
    raise AssertionError(remasking)
