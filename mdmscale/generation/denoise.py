"""Sampling: start from masks, and commit the best predictions step by step until no mask is left.

The loop is LLaDA's (arXiv 2502.09992, Algorithm 4 for random remasking, 5 for low confidence). "Remasking"
the least confident predictions is the same as committing only the most confident ones, as it is written here.

Legend: rows = samples of one prompt; masked = masked positions of all rows together; vocab = logit columns.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import nn

Remasking = Literal["confidence", "random"]
Predict = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(tokens [rows, length], is_masked bool [rows, length]) -> logits [masked, vocab], in row-major order."""

SAMPLING_CHUNK = 256
"""Masked positions sampled at a time: bounds the float64 noise to [256, vocab]."""


@torch.inference_mode()
def denoise(
    predict: Predict,
    tokens: torch.Tensor,
    *,
    mask_token_id: int,
    steps: int,
    generator: torch.Generator,
    temperature: float = 0.0,
    remasking: Remasking = "confidence",
) -> torch.Tensor:
    """Replace every mask in `tokens` in exactly `steps` predictions; the other tokens stay as they are.

    Args:
        predict: the model, as `masked_predictor` makes it.
        tokens: int64 [rows, length], with the same number of masks in every row; not changed.
        steps: from 1 (all masks at once) to the number of masks in a row (one a step).
        generator: the only source of randomness, on the device of `tokens`.
        temperature: 0 takes the likeliest token; 1 samples from the model's own distribution.
        remasking: commit the positions whose token is the most probable, or random ones.

    Returns:
        int64 [rows, length] without `mask_token_id`.

    Raises:
        ValueError: if `steps` does not suit the number of masks, or the rows have different numbers of them.
    """
    tokens = tokens.clone()
    for num_commits in commits_per_step(_masks_per_row(tokens == mask_token_id), steps):
        is_masked = tokens == mask_token_id
        candidates, confidence = _sample(predict(tokens, is_masked), mask_token_id, temperature, generator)
        if remasking == "random":
            confidence = torch.rand(
                confidence.shape, dtype=confidence.dtype, device=confidence.device, generator=generator
            )
        _commit(tokens, is_masked, candidates, confidence, num_commits)
    return tokens


def commits_per_step(num_masks: int, steps: int) -> list[int]:
    """How many of `num_masks` positions each step commits: an even split, the remainder in the first steps.

    Raises:
        ValueError: unless 1 <= steps <= num_masks, as every step must commit something.
    """
    if not 1 <= steps <= num_masks:
        raise ValueError(f"steps = {steps} must be from 1 to the number of masks, {num_masks}")
    share, remainder = divmod(num_masks, steps)
    return [share + (step < remainder) for step in range(steps)]


def masked_predictor(model: nn.Module, logit_shift: bool) -> Predict:
    """The Predict of a Hugging Face causal-LM class; it projects only columns with a mask to the vocabulary.

    Args:
        model: called with `input_ids`, `logits_to_keep` and `use_cache`; its output has `.logits`.
        logit_shift: read position i from the logits at i - 1, and position 0 from its own (Dream).
    """

    def predict(tokens: torch.Tensor, is_masked: torch.Tensor) -> torch.Tensor:
        columns = is_masked.any(dim=0).nonzero().squeeze(1)  # [columns]
        read_from = (columns - 1).clamp(min=0) if logit_shift else columns
        output = model(input_ids=tokens, logits_to_keep=read_from, use_cache=False)
        return output.logits[is_masked[:, columns]]  # [masked, vocab]

    return predict


def _masks_per_row(is_masked: torch.Tensor) -> int:
    counts = is_masked.sum(dim=1)  # [rows]
    if counts.min() != counts.max():
        raise ValueError(f"every row needs the same number of masks, not {counts.tolist()}")
    return int(counts[0])


def _sample(
    logits: torch.Tensor, mask_token_id: int, temperature: float, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """A token a masked position, int64 [masked], and the model's probability of it, float64 [masked]."""
    pairs = [
        _sample_chunk(part, mask_token_id, temperature, generator) for part in logits.split(SAMPLING_CHUNK)
    ]
    candidates, confidence = zip(*pairs, strict=True)
    return torch.cat(candidates), torch.cat(confidence)


def _sample_chunk(
    logits: torch.Tensor, mask_token_id: int, temperature: float, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    logits = logits.to(torch.float64, copy=True)  # [chunk, vocab]
    logits[:, mask_token_id] = -torch.inf  # the mask is not a token of the text
    scores = logits
    if temperature > 0:
        # Gumbel-max. The short tail of fp32 noise would act as a lower temperature (arXiv 2409.02908).
        waiting_times = torch.empty_like(logits).exponential_(generator=generator)
        waiting_times.clamp_(min=torch.finfo(torch.float64).tiny)  # an infinite score could revive the mask
        scores = logits - temperature * waiting_times.log()
    candidates = scores.argmax(dim=-1)
    probabilities = logits.softmax(dim=-1)
    return candidates, probabilities.gather(1, candidates[:, None]).squeeze(1)


def _commit(
    tokens: torch.Tensor,
    is_masked: torch.Tensor,
    candidates: torch.Tensor,
    confidence: torch.Tensor,
    num_commits: int,
) -> None:
    """Write into `tokens` each row's `num_commits` candidates of the greatest confidence."""
    ranking = torch.full(tokens.shape, -1.0, dtype=confidence.dtype, device=tokens.device)  # [rows, length]
    ranking[is_masked] = confidence
    proposal = tokens.clone()
    proposal[is_masked] = candidates
    chosen = ranking.topk(num_commits, dim=1).indices  # [rows, num_commits]
    tokens.scatter_(1, chosen, proposal.gather(1, chosen))
