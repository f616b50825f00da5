"""From logits to tokens: the token that each masked position proposes, and how sure the model is of it.

Legend: masked = positions that a step predicts; vocab = logit columns.
"""

from dataclasses import replace

import torch

from mdmscale.generation.options import GenerationOptions
from mdmscale.generation.ranking import Scores, score, shuffle

SAMPLING_CHUNK = 128
"""How many masked positions are sampled at once. It bounds the float64 probabilities to [128, vocab]."""

LAST = -1e30  # the value and ranking of tokens that are committed after all others


def propose(
    logits: torch.Tensor,
    uniforms: torch.Tensor,
    options: GenerationOptions,
    banned_ids: torch.Tensor,
    eos_ids: torch.Tensor,
) -> tuple[torch.Tensor, Scores]:
    """A token for every masked position, and its score.

    Args:
        logits: [masked, vocab], on any device.
        uniforms: float64 [masked, 2] in [0, 1): one for the token, one for its place in the order.
        banned_ids: int64 [banned], tokens that must not be sampled, such as the mask.
        eos_ids: int64 [eos], the tokens that `options.eos` speaks of.

    Returns:
        Token ids, int64 [masked], and their scores.
    """
    if options.eos == "never":
        banned_ids = torch.cat([banned_ids, eos_ids])
    tokens, parts = [], []
    for part, draws in zip(logits.split(SAMPLING_CHUNK), uniforms.split(SAMPLING_CHUNK), strict=True):
        part = part.to(torch.float64, copy=True)  # [chunk, vocab]
        part[:, banned_ids] = -torch.inf
        kept = restrict(part, options.temperature, options.top_p, options.top_k)
        chosen = choose_tokens(kept, draws[:, 0], options.temperature)
        tokens.append(chosen)
        parts.append(
            score(kept if options.scores == "sampling" else part, chosen, draws[:, 1], options.remasking)
        )
    all_tokens = torch.cat(tokens)
    scores = Scores(*(torch.cat(columns) for columns in zip(*map(_columns, parts), strict=True)))
    if options.order_temperature > 0:
        scores = shuffle(scores, uniforms[:, 1], options.order_temperature)
    if options.eos == "late":
        is_eos = torch.isin(all_tokens, eos_ids)
        values, ranking = (each.masked_fill(is_eos, LAST) for each in (scores.values, scores.ranking))
        scores = replace(scores, values=values, ranking=ranking)
    return all_tokens, scores


def _columns(scores: Scores) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return scores.values, scores.ranking, scores.errors


def restrict(
    logits: torch.Tensor, temperature: float = 0.0, top_p: float = 1.0, top_k: int | None = None
) -> torch.Tensor:
    """The logits of the distribution to draw from, float64 [masked, vocab]; -inf for tokens left out.

    First the logits are divided by the temperature, unless it is 0. Then only the likeliest tokens that
    together have the mass `top_p` stay, with the one that reaches it. Of these the `top_k` likeliest stay,
    and those as likely as the last of them.
    """
    if temperature > 0:
        # Subtract the largest logit first, as dividing by a tiny temperature would overflow.
        logits = (logits - logits.amax(dim=-1, keepdim=True)) / temperature
    if top_p < 1:
        ordered, token_ids = logits.softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
        is_beyond = ordered.cumsum(dim=-1) - ordered >= top_p
        is_left_out = torch.zeros_like(is_beyond).scatter_(1, token_ids, is_beyond)
        logits = logits.masked_fill(is_left_out, -torch.inf)
    if top_k is not None and top_k < logits.shape[-1]:
        last = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < last, -torch.inf)
    return logits


def choose_tokens(logits: torch.Tensor, uniforms: torch.Tensor, temperature: float) -> torch.Tensor:
    """Tokens drawn from softmax(logits), or the likeliest ones at temperature 0. int64 [masked].

    Each token inverts the cumulative distribution at one uniform. Gumbel noise on the logits, as LLaDA adds
    it, gives the same distribution, but needs one draw for each vocabulary entry, and in fp32 its
    distribution is wrong (arXiv 2409.02908).

    Args:
        logits: float64 [masked, vocab], divided by the temperature already; see `restrict`.
        uniforms: float64 [masked] in [0, 1).
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    cumulative = logits.softmax(dim=-1).cumsum(dim=-1)
    whole = cumulative[:, -1]
    levels = torch.minimum(uniforms * whole, torch.nextafter(whole, torch.zeros_like(whole)))
    return torch.searchsorted(cumulative, levels[:, None], right=True).squeeze(1)
