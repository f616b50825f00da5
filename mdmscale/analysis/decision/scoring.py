"""Scores of stacked models: right answers by greedy decoding, and bounds of the negative log-likelihood.

Legend: lanes; questions = texts that are scored; length = tokens of a text; answer = its last tokens.
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


@torch.inference_mode()
def greedy_is_right(model: StackedModel, texts: np.ndarray, first: int, is_causal: bool) -> np.ndarray:
    """Whether each answer is decoded without an error, bool [lanes, questions].

    A masked diffusion model commits one token a step: where it is surest, its likeliest token (LLaDA's low
    confidence remasking at temperature 0, in one block). An autoregressive one goes from left to right. The
    mask token is never chosen.

    Args:
        texts: int64 [questions, length], with the right answers from token `first` on.
    """
    wanted = torch.from_numpy(texts)
    parts = []
    for group in wanted.split(AT_ONCE):
        targets = group.expand(model.num_lanes, *group.shape)
        decoded = _left_to_right(model, targets, first) if is_causal else _denoised(model, targets, first)
        parts.append((decoded == targets).all(dim=-1))
    return torch.cat(parts, dim=1).numpy()


def _denoised(model: StackedModel, targets: torch.Tensor, first: int) -> torch.Tensor:
    mask = model.shape.mask_token_id
    tokens = targets.clone()
    tokens[..., first:] = mask
    for _ in range(targets.shape[-1] - first):
        logits = model.logits(tokens, first)
        shares = logits[..., :mask].softmax(dim=-1)  # without the mask token, which is the last one
        confidence, proposals = shares.max(dim=-1)  # [lanes, questions, answer]
        is_open = tokens[..., first:] == mask
        place = confidence.masked_fill(~is_open, -1).argmax(dim=-1, keepdim=True)
        tokens[..., first:].scatter_(-1, place, proposals.gather(-1, place))
    return tokens


def _left_to_right(model: StackedModel, targets: torch.Tensor, first: int) -> torch.Tensor:
    tokens = targets.clone()
    for place in range(first, targets.shape[-1]):
        logits = model.logits(tokens[..., :place], place - 1, is_causal=True)
        tokens[..., place] = logits[..., 0, : model.shape.mask_token_id].argmax(dim=-1)
    return tokens


@torch.inference_mode()
def likelihood(
    model: StackedModel, texts: np.ndarray, first: int, is_causal: bool, num_rows: int
) -> np.ndarray:
    """The negative log-likelihood of each answer in nats a token, float64 [lanes, questions].

    For a masked diffusion model it is its bound, estimated by `num_rows` coupled masks, which are the
    same for all models; for an autoregressive model it is exact.
    """
    num_questions, length = texts.shape
    targets = torch.from_numpy(texts)
    if is_causal:
        parts = [
            cross_entropies(
                model, group.expand(model.num_lanes, *group.shape), torch.tensor(False), first, True
            )
            for group in targets.split(AT_ONCE)
        ]
        return torch.cat(parts, dim=1).double().mean(dim=-1).numpy()
    n = length - first
    values = np.empty((model.num_lanes, num_questions))
    for question in range(num_questions):
        rows = likelihood_masks(n, num_rows, question)
        masks = torch.zeros(len(rows.masks), length, dtype=torch.bool)
        masks[:, first:] = torch.from_numpy(rows.masks)
        shape = (model.num_lanes, *masks.shape)
        losses = cross_entropies(model, targets[question].expand(shape), masks.expand(shape), first)
        masked = (losses.double() * torch.from_numpy(rows.masks)).sum(dim=-1)  # [lanes, rows]
        values[:, question] = (masked @ torch.from_numpy(rows.weights)).numpy() / n
    return values


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
