"""Pad texts of different lengths to one batch, and say to which block every mask belongs.

Legend: rows = texts; length = the longest text's tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import torch

from mdmscale.diffusion.uniforms import Stream, generator
from mdmscale.generation.options import GenerationOptions
from mdmscale.generation.prompts import Request
from mdmscale.generation.schedule import block_sizes, commits_per_step
from mdmscale.system.errors import UserError

GIVEN = -1  # the block number of given tokens and of padding


@dataclass(frozen=True)
class PaddedBatch:
    """The input of the denoising loop. All tensors are [rows, length]."""

    tokens: torch.Tensor  # int64; mask_token_id where a token is wanted
    is_real: torch.Tensor  # bool: not padding
    position_ids: torch.Tensor  # int64: 0, 1, ... counted from a text's own first token
    blocks: torch.Tensor  # int64: the block number of each mask; GIVEN elsewhere
    commits: list[list[list[int]]]  # [rows][blocks][steps], see `commits_per_step`
    noise_keys: list[int]  # [rows]
    mask_token_id: int

    @property
    def num_blocks(self) -> int:
        return max((len(row) for row in self.commits), default=0)

    @property
    def is_padded(self) -> bool:
        return not bool(self.is_real.all())


def pad_requests(
    requests: Sequence[Request], options: GenerationOptions, mask_token_id: int, device: torch.device
) -> PaddedBatch:
    """Pad the requests' texts to the longest one, on the side that `options.padding` names.

    Raises:
        UserError: where `options.cache` is set, but the texts' blocks do not lie in the same columns.
    """
    tails = {len(request.token_ids) - (request.prompt_length or 0) for request in requests}
    if options.cache and (len(tails) > 1 or any(request.prompt_length is None for request in requests)):
        raise UserError("cache: a batch must hold responses of one length and no infillings; leave cache out")
    length = max(len(request.token_ids) for request in requests)
    shape = (len(requests), length)
    tokens = torch.zeros(shape, dtype=torch.int64)
    is_real = torch.zeros(shape, dtype=torch.bool)
    position_ids = torch.zeros(shape, dtype=torch.int64)
    blocks = torch.full(shape, GIVEN)
    commits = []
    for row, request in enumerate(requests):
        size = len(request.token_ids)
        first = length - size if options.padding == "left" else 0
        at = slice(first, first + size)
        tokens[row, at] = torch.tensor(request.token_ids)
        is_real[row, at] = True
        position_ids[row, at] = torch.arange(size)
        masked = (tokens[row] == mask_token_id).nonzero().squeeze(1)  # [masks]
        sizes = block_sizes(len(masked), options.block_length)
        blocks[row, masked] = torch.arange(len(sizes)).repeat_interleave(
            torch.tensor(sizes, dtype=torch.int64)
        )
        commits.append(_commits(request, sizes, options))
    return PaddedBatch(
        tokens.to(device),
        is_real.to(device),
        position_ids.to(device),
        blocks.to(device),
        commits,
        [noise_key(request) for request in requests],
        mask_token_id,
    )


def _commits(request: Request, sizes: list[int], options: GenerationOptions) -> list[list[int]]:
    """See `commits_per_step`. Its random numbers are keyed by the seed and the text."""
    uniforms = None
    if options.schedule == "independent":
        uniforms = generator(options.seed, Stream.SCHEDULE, noise_key(request)).random(sum(sizes))
    return commits_per_step(sizes, options.steps, options.schedule, uniforms)


def noise_key(request: Request) -> int:
    """64 bits that key a text's random draws: a hash of its own tokens and its sample number.

    The draws therefore do not depend on the other texts of the batch.
    """
    text = ",".join(map(str, [request.sample, *request.token_ids]))
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")
