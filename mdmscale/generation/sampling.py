"""From logits to tokens: which token each masked position proposes, and which proposals are committed first.

Legend: masked = the positions that a step predicts; vocab = logit columns.
"""

import torch

from mdmscale.generation.options import GenerationOptions

SAMPLING_CHUNK = 128
"""Masked positions sampled at a time: bounds the float64 probabilities to [128, vocab]."""

SCORE_DECIMALS = 5
"""Scores are rounded, so that fp32 rounding, which differs with the batch, hardly ever decides an order."""

LAST = -1e30  # the score of what is committed after all else


def propose(
    logits: torch.Tensor,
    uniforms: torch.Tensor,
    options: GenerationOptions,
    banned_ids: torch.Tensor,
    eos_ids: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A token for every masked position, and its score: the highest are committed first.

    Args:
        logits: [masked, vocab], on any device.
        uniforms: float64 [masked, 2] in [0, 1): one decides the token, one the order of random remasking.
        banned_ids: int64 [banned], tokens that are no text, such as the mask.
        eos_ids: int64 [eos], what `options.eos` is about.

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
    """Tokens from softmax(logits / temperature), cut to the likeliest of mass `top_p`. int64 [masked].

    Each is the inverse of the cumulative distribution at one uniform. Gumbel noise on the logits gives the
    same distribution from a whole vocabulary of draws, and in fp32 a wrong one (arXiv 2409.02908).
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    # The largest logit is taken off first, as a tiny temperature would overflow.
    probabilities = ((logits - logits.amax(dim=-1, keepdim=True)) / temperature).softmax(dim=-1)
    if top_p == 1:
        return _invert(probabilities.cumsum(dim=-1), uniforms)
    ordered, token_ids = probabilities.sort(dim=-1, descending=True, stable=True)
    mass = ordered.cumsum(dim=-1)
    kept = torch.where(mass - ordered < top_p, ordered, 0.0)  # the one that reaches top_p is the last
    return token_ids.gather(1, _invert(kept.cumsum(dim=-1), uniforms)[:, None]).squeeze(1)


def _invert(cumulative: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """The first index of [masked, vocab] whose cumulative sum exceeds `uniforms` of the whole."""
    whole = cumulative[:, -1]
    levels = torch.minimum(uniforms * whole, torch.nextafter(whole, torch.zeros_like(whole)))
    return torch.searchsorted(cumulative, levels[:, None], right=True).squeeze(1)


def _scores(
    logits: torch.Tensor, tokens: torch.Tensor, uniforms: torch.Tensor, remasking: str
) -> torch.Tensor:
    """float64 [masked], from the model's own distribution, whatever the temperature was."""
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
