"""The denoising loop: predict the masks of a block and commit the best proposals, until no mask is left.

The loop is LLaDA's with its blocks (arXiv 2502.09992: Algorithm 4 for random remasking, 5 for low
confidence). LLaDA "remasks" the least confident proposals; this loop commits only the most confident ones,
which is the same. Dream's loop (arXiv 2508.15487) differs in the schedule and the scores, which are options.
A confidence threshold or factor (arXiv 2505.22618) can replace the fixed number of steps.

Legend: rows = texts; length = padded tokens; open = masked positions of the current block, in all rows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from mdmscale.diffusion.uniforms import Stream, generator
from mdmscale.generation.batch import GIVEN, PaddedBatch
from mdmscale.generation.options import GenerationOptions
from mdmscale.generation.ranking import choose
from mdmscale.generation.sampling import propose


class Predict(Protocol):
    """What the loop needs of a model. `Predictor` has it; tests give logits made by hand."""

    def start_block(self) -> None: ...

    def __call__(self, tokens: torch.Tensor, is_wanted: torch.Tensor) -> torch.Tensor: ...


@dataclass(frozen=True)
class Frame:
    """The batch after a step."""

    tokens: torch.Tensor  # int64 [rows, length]
    is_new: torch.Tensor  # bool [rows, length]: committed in this step
    num_forwards: list[int]  # [rows]: forward passes of each text so far
    is_real: torch.Tensor  # bool [rows, length]: not padding

    def row(self, row: int) -> list[int]:
        """A text's token ids, without padding."""
        return list(self.tokens[row, self.is_real[row]].tolist())

    def new_in_row(self, row: int) -> list[bool]:
        """For each of these tokens, whether this step has committed it."""
        return list(self.is_new[row, self.is_real[row]].tolist())


@torch.inference_mode()
def denoise(
    predict: Predict,
    batch: PaddedBatch,
    options: GenerationOptions,
    *,
    banned_ids: Sequence[int] = (),
    eos_ids: Sequence[int] = (),
) -> Iterator[Frame]:
    """Replace every mask of `batch`, step by step. Yields the batch after each step.

    A row's result depends only on its own tokens. Its random draws are keyed by (seed, noise key, number of
    its forward passes so far), and it waits while other rows take more steps for a block.
    """
    device = batch.tokens.device
    banned = torch.tensor([batch.mask_token_id, *banned_ids], device=device)
    eos = torch.tensor(list(eos_ids), dtype=torch.int64, device=device)
    tokens = batch.tokens.clone()
    num_forwards = [0] * len(tokens)
    for block in range(batch.num_blocks):
        predict.start_block()
        step = 0
        while (is_open := (tokens == batch.mask_token_id) & (batch.blocks == block)).any():
            draws = _uniforms(batch, is_open, num_forwards, options)  # [open, 2]
            logits = predict(tokens, is_open)
            proposals, scores = propose(logits, draws, options, banned, eos)
            is_new = choose(is_open, scores, options, _num_commits(batch, block, step))
            tokens = tokens.masked_scatter(is_new, proposals[is_new[is_open]])
            for row in is_open.any(dim=1).nonzero().flatten().tolist():
                num_forwards[row] += 1
            step += 1
            if (
                options.eos in ("stop", "late")
                and not (tokens[batch.blocks == block] == batch.mask_token_id).any()
            ):
                filled = _fill_after_eos(tokens, batch, eos)
                is_new, tokens = is_new | (filled != tokens), filled
            yield Frame(tokens, is_new, list(num_forwards), batch.is_real)


def _uniforms(
    batch: PaddedBatch, is_open: torch.Tensor, num_forwards: list[int], options: GenerationOptions
) -> torch.Tensor:
    """Two uniforms for each open position, float64 [open, 2]. A row draws for its real positions only."""
    uniforms = torch.zeros(*is_open.shape, 2, dtype=torch.float64)  # [rows, length, 2]
    if options.draws:
        is_real = batch.is_real.cpu()
        for row in is_open.any(dim=1).nonzero().flatten().tolist():
            draws = generator(options.seed, Stream.GENERATION, batch.noise_keys[row], step=num_forwards[row])
            uniforms[row, is_real[row]] = torch.from_numpy(draws.random((int(is_real[row].sum()), 2)))
    return uniforms.to(is_open.device)[is_open]


def _num_commits(batch: PaddedBatch, block: int, step: int) -> torch.Tensor:
    """How many tokens the schedule commits in this step of this block, int64 [rows]."""
    numbers = [
        row[block][step] if block < len(row) and step < len(row[block]) else 0 for row in batch.commits
    ]
    return torch.tensor(numbers, device=batch.tokens.device)


def _fill_after_eos(tokens: torch.Tensor, batch: PaddedBatch, eos_ids: torch.Tensor) -> torch.Tensor:
    """Fill the masks after an EOS with EOS, in the last part of a row, which no given token follows."""
    was_wanted = batch.blocks != GIVEN
    is_free = was_wanted | ~batch.is_real
    is_tail = is_free.flip(1).cumprod(dim=1).flip(1).bool() & was_wanted  # [rows, length]
    is_eos = torch.isin(tokens, eos_ids) & is_tail
    is_after = is_eos.cumsum(dim=1) > 0
    first = tokens.gather(1, is_eos.long().argmax(dim=1, keepdim=True))  # [rows, 1]
    return torch.where(is_after & is_tail & (tokens == batch.mask_token_id), first, tokens)
