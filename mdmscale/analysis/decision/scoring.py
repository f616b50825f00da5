"""Scores of stacked models: right answers by greedy decoding, and bounds of the negative log-likelihood.

Legend: lanes; questions = texts that are scored; length = tokens of a text; answer = those that are scored.
"""

import numpy as np
import torch

from mdmscale.analysis.decision.stacked_loss import cross_entropies
from mdmscale.analysis.decision.stacked_model import StackedModel
from mdmscale.diffusion.uniforms import Stream, generator
from mdmscale.evaluation.likelihood.masks import MaskRows, enumerated, stratified

# The masks of a likelihood are the same for every model that is scored.
SEED = 0
REPLICATES = 2
AT_ONCE = 64  # questions in a forward: more are slower, as they leave the cache


@torch.no_grad()
def greedy_is_right(
    model: StackedModel, texts: np.ndarray, is_answer: np.ndarray, is_causal: bool
) -> np.ndarray:
    """Whether each answer is decoded without an error, bool [lanes, questions].

    A masked diffusion model commits one token a step: where it is surest, its likeliest token (LLaDA's low
    confidence remasking at temperature 0, in one block). An autoregressive one goes from left to right. The
    mask token is never chosen.

    Args:
        texts: int64 [questions, length], with the right answers.
        is_answer: bool [length].
    """
    parts = []
    for group in torch.from_numpy(texts).split(AT_ONCE):
        targets = group.expand(model.num_lanes, *group.shape)
        decode = _left_to_right if is_causal else _denoised
        parts.append((decode(model, targets, torch.from_numpy(is_answer)) == targets).all(dim=-1))
    return torch.cat(parts, dim=1).numpy()


def _denoised(model: StackedModel, targets: torch.Tensor, is_answer: torch.Tensor) -> torch.Tensor:
    mask, first = model.shape.mask_token_id, int(is_answer.int().argmax())
    tokens = targets.masked_fill(is_answer, mask)
    for _ in range(int(is_answer.sum())):
        logits = model.logits(tokens, first)
        shares = logits[..., :mask].softmax(dim=-1)  # without the mask token, which is the last one
        confidence, proposals = shares.max(dim=-1)  # [lanes, questions, length - first]
        is_open = tokens[..., first:] == mask
        place = confidence.masked_fill(~is_open, -1).argmax(dim=-1, keepdim=True)
        tokens[..., first:].scatter_(-1, place, proposals.gather(-1, place))
    return tokens


def _left_to_right(model: StackedModel, targets: torch.Tensor, is_answer: torch.Tensor) -> torch.Tensor:
    tokens = targets.clone()
    for place in is_answer.nonzero().flatten().tolist():
        logits = model.logits(tokens[..., :place], place - 1, is_causal=True)
        tokens[..., place] = logits[..., 0, : model.shape.mask_token_id].argmax(dim=-1)
    return tokens


@torch.no_grad()
def likelihood(
    model: StackedModel, texts: np.ndarray, is_answer: np.ndarray, is_causal: bool, num_rows: int
) -> np.ndarray:
    """The negative log-likelihood of each answer in nats a token, float64 [lanes, questions].

    For a masked diffusion model it is its bound, estimated by `num_rows` coupled masks, which are the same
    for all models; for an autoregressive model it is exact.

    Args: as of `greedy_is_right`.
    """
    n, values = int(is_answer.sum()), []
    at_once = AT_ONCE if is_causal else max(1, AT_ONCE // num_rows)
    for start in range(0, len(texts), at_once):
        group = texts[start : start + at_once]
        masks, weights = _mask_rows(is_answer, range(start, start + len(group)), 0 if is_causal else num_rows)
        rows = torch.from_numpy(np.repeat(group, len(masks) // len(group), axis=0))
        shape = (model.num_lanes, *rows.shape)
        first = max(int(is_causal), int(is_answer.argmax()))
        losses = cross_entropies(model, rows.expand(shape), masks.expand(shape), first, is_causal)
        masked = (losses.double() * masks[:, first:]).sum(dim=-1) * weights  # [lanes, rows]
        values.append(masked.unflatten(1, (len(group), -1)).sum(dim=-1) / n)
    return torch.cat(values, dim=1).numpy()


def _mask_rows(is_answer: np.ndarray, questions: range, num_rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks [rows, length] and weights [rows] of questions; without rows, one that holds the whole answer."""
    masks, weights = [], []
    n = int(is_answer.sum())
    for question in questions:
        whole = MaskRows(np.ones((1, n), dtype=bool), np.ones(1))
        rows = likelihood_masks(n, num_rows, question) if num_rows else whole
        placed = np.zeros((len(rows.masks), len(is_answer)), dtype=bool)
        placed[:, is_answer] = rows.masks
        masks.append(placed)
        weights.append(rows.weights)
    return torch.from_numpy(np.concatenate(masks)), torch.from_numpy(np.concatenate(weights))


def likelihood_masks(n: int, num_rows: int, question: int) -> MaskRows:
    """The masks of a text: coupled strata of counts, twice, or every mask where there are no more."""
    if 2**n - 1 <= num_rows:
        return enumerated(n)
    parts = []
    for replicate in range(REPLICATES):
        draws = generator(SEED, Stream.LIKELIHOOD, question, replicate)
        parts.append(stratified(n, draws.random(num_rows // REPLICATES), draws.permutation(n)))
    return MaskRows(
        np.concatenate([part.masks for part in parts]),
        np.concatenate([part.weights for part in parts]) / REPLICATES,
    )
