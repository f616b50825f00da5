"""Sampling from an autoregressive model: from left to right, a token a forward, with a cache.

Prompts are padded on the left, so that all responses begin in one column.

Legend: rows = texts; length = columns of the longest prompt and of the longest response; open = rows whose
response goes on.
"""

from collections.abc import Iterator, Sequence

import torch
from transformers import DynamicCache, PreTrainedModel

from mdmscale.diffusion.uniforms import Stream, generator
from mdmscale.generation.batch import noise_key
from mdmscale.generation.block_cache import cache_keyword
from mdmscale.generation.denoise import Frame
from mdmscale.generation.left_to_right import without_denoising
from mdmscale.generation.options import GenerationOptions
from mdmscale.generation.prompts import Request
from mdmscale.generation.sampling import propose


@torch.inference_mode()
def decode(
    model: PreTrainedModel,
    requests: Sequence[Request],
    options: GenerationOptions,
    *,
    wanted_id: int,
    banned_ids: Sequence[int],
    eos_ids: Sequence[int],
) -> Iterator[Frame]:
    """Continue the requests' prompts as one batch. Yields the batch after every token.

    A response ends at its EOS, with which the rest of it is filled. As in denoising, a row's random draws are
    keyed by (seed, noise key, number of its tokens so far).

    Args:
        wanted_id: what stands for a token of the response in the requests.
        banned_ids: tokens that must not be sampled, such as the mask.
    """
    device, options = model.device, without_denoising(options)
    tokens, is_real = (each.to(device) for each in padded_left(requests))
    prompt = max(request.prompt_length or 0 for request in requests)
    positions = (is_real.cumsum(dim=1) - 1).clamp(min=0)  # [rows, length]
    is_padded = not bool(is_real[:, :prompt].all())
    banned = torch.tensor([*banned_ids], dtype=torch.int64, device=device)
    eos = torch.tensor([*eos_ids], dtype=torch.int64, device=device)
    keys = [noise_key(request) for request in requests]
    num_forwards = [0] * len(requests)
    cache = DynamicCache(config=model.config)
    keyword = cache_keyword(model)
    for column in range(prompt, tokens.shape[1]):
        is_open = is_real[:, column] & (tokens[:, column] == wanted_id)  # [rows]
        if not is_open.any():
            return
        known = int(cache.get_seq_length())
        output = model(
            input_ids=tokens[:, known:column].clamp(min=0),
            attention_mask=is_real[:, :column].long() if is_padded else None,
            position_ids=positions[:, known:column],
            logits_to_keep=1,
            use_cache=True,
            **{keyword: cache},
        )
        rows = is_open.nonzero().flatten().tolist()
        draws = _uniforms(rows, keys, num_forwards, options).to(device)  # [open, 2]
        chosen, _ = propose(output.logits[is_open, -1], draws, options, banned, eos)  # [open]
        before = tokens.clone()
        tokens[is_open, column] = chosen
        for row in rows:
            num_forwards[row] += 1
        ends = is_open & torch.isin(tokens[:, column], eos)
        rest = is_real & ends[:, None] & (torch.arange(tokens.shape[1], device=device) > column)
        tokens = torch.where(rest, tokens[:, column, None], tokens)
        yield Frame(tokens.clone(), tokens != before, list(num_forwards), is_real)


def padded_left(requests: Sequence[Request]) -> tuple[torch.Tensor, torch.Tensor]:
    """The requests' tokens, int64 [rows, length], and where these are not padding, bool [rows, length]."""
    prompt = max(request.prompt_length or 0 for request in requests)
    starts = [prompt - (request.prompt_length or 0) for request in requests]
    length = max(start + len(request.token_ids) for start, request in zip(starts, requests, strict=True))
    tokens = torch.zeros(len(requests), length, dtype=torch.int64)
    is_real = torch.zeros(len(requests), length, dtype=torch.bool)
    for row, (start, request) in enumerate(zip(starts, requests, strict=True)):
        at = slice(start, start + len(request.token_ids))
        tokens[row, at] = torch.tensor(request.token_ids)
        is_real[row, at] = True
    return tokens, is_real


def _uniforms(
    rows: list[int], keys: list[int], num_forwards: list[int], options: GenerationOptions
) -> torch.Tensor:
    """Two uniforms for each open row, float64 [open, 2]."""
    uniforms = torch.zeros(len(rows), 2, dtype=torch.float64)
    if options.draws:
        for place, row in enumerate(rows):
            draws = generator(options.seed, Stream.GENERATION, keys[row], step=num_forwards[row])
            uniforms[place] = torch.from_numpy(draws.random(2))
    return uniforms
