"""The predictor compared with plain forward passes of the same model, one text at a time."""

from inspect import signature

import torch

from mdmscale.generation import GenerationOptions, LoadedModel, Request, encode_prompt
from mdmscale.generation.batch import PaddedBatch, pad_requests
from mdmscale.generation.options import Padding
from mdmscale.generation.predictor import Predictor

LENGTH = 6
PROMPTS = ("def add(a, b):", "x", None)


def requests(loaded: LoadedModel) -> list[Request]:
    return [encode_prompt(loaded, prompt, LENGTH) for prompt in PROMPTS]


def make_batch(
    loaded: LoadedModel, padding: Padding = "left", block_length: int | None = None
) -> PaddedBatch:
    options = GenerationOptions(length=LENGTH, padding=padding, block_length=block_length)
    return pad_requests(requests(loaded), options, loaded.description.mask_token_id, loaded.device)


def full_logits(loaded: LoadedModel, token_ids: list[int]) -> torch.Tensor:
    """The logits [length, vocab] of a single text, without padding or cache."""
    with torch.inference_mode():
        return loaded.model(input_ids=torch.tensor([token_ids])).logits[0]


@torch.inference_mode()
def predict(predictor: Predictor, tokens: torch.Tensor, is_wanted: torch.Tensor) -> torch.Tensor:
    return predictor(tokens, is_wanted)


def assert_same(actual: torch.Tensor, expected: list[torch.Tensor]) -> None:
    torch.testing.assert_close(actual, torch.cat(expected), atol=1e-5, rtol=0)


def test_padding_on_either_side_changes_nothing(loaded: LoadedModel) -> None:
    expected = [full_logits(loaded, request.token_ids)[-LENGTH:] for request in requests(loaded)]
    for padding in ("left", "right"):
        batch = make_batch(loaded, padding)  # type: ignore[arg-type]
        assert_same(predict(Predictor(loaded.model, batch), batch.tokens, batch.blocks >= 0), expected)


def test_the_shift_reads_one_position_earlier(loaded: LoadedModel) -> None:
    batch = make_batch(loaded)
    expected = []
    for request in requests(loaded):
        logits = full_logits(loaded, request.token_ids)
        places = range(len(request.token_ids) - LENGTH, len(request.token_ids))
        expected.append(torch.stack([logits[max(0, place - 1)] for place in places]))
    predictor = Predictor(loaded.model, make_batch(loaded, "right"), logit_shift=True)
    batch = predictor.batch
    assert_same(predict(predictor, batch.tokens, batch.blocks >= 0), expected)


def test_guidance_is_llada_s_formula(loaded: LoadedModel) -> None:
    mask = loaded.description.mask_token_id
    batch = make_batch(loaded)
    expected = []
    for request in requests(loaded):
        guided = full_logits(loaded, request.token_ids)[-LENGTH:]
        free = full_logits(loaded, [mask] * len(request.token_ids))[-LENGTH:]
        expected.append(free + (1.5 + 1) * (guided - free))
    predictor = Predictor(loaded.model, batch, guidance=1.5)
    assert_same(predict(predictor, batch.tokens, batch.blocks >= 0), expected)


def test_rows_without_wanted_positions_take_no_part(loaded: LoadedModel) -> None:
    batch = make_batch(loaded)
    is_wanted = batch.blocks >= 0
    is_wanted[1] = False
    rows: list[int] = []
    handle = loaded.model.model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    logits = predict(Predictor(loaded.model, batch), batch.tokens, is_wanted)
    handle.remove()
    assert rows == [2] and len(logits) == 2 * LENGTH


def test_a_block_s_first_cached_pass_is_a_full_one_and_the_next_is_short(loaded: LoadedModel) -> None:
    batch = make_batch(loaded, block_length=3)
    plain, cached = (Predictor(loaded.model, batch, cache=cache) for cache in (False, True))
    widths: list[int] = []
    handle = loaded.model.model.register_forward_pre_hook(
        lambda module, args, kwargs: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    tokens = batch.tokens.clone()
    for block in (0, 1):
        plain.start_block()
        cached.start_block()
        for _ in range(2):  # nothing is committed in between, so the second pass sees the same input
            is_open = (batch.blocks == block) & (tokens == batch.mask_token_id)
            expected = predict(plain, tokens, is_open)
            torch.testing.assert_close(predict(cached, tokens, is_open), expected, atol=1e-5, rtol=0)
        tokens[batch.blocks == block] = 5
    handle.remove()
    width = batch.tokens.shape[1]
    assert widths[1::2] == [width, LENGTH, width, 3]  # the cached passes
    assert widths[0::2] == [width] * 4


def test_a_cached_prefix_is_that_of_the_block_s_first_pass(loaded: LoadedModel) -> None:
    """The reference caches the prefix from the text before the block's tokens were committed."""
    (request,) = requests(loaded)[:1]
    options = GenerationOptions(length=LENGTH, block_length=3)
    batch = pad_requests([request], options, loaded.description.mask_token_id, loaded.device)
    start = len(request.token_ids) - LENGTH
    predictor = Predictor(loaded.model, batch, cache="prefix")
    before = batch.tokens
    predict(predictor, before, batch.blocks == 0)
    after = before.clone()
    after[0, start] = 7
    is_open = (batch.blocks == 0) & (after == batch.mask_token_id)
    given = predict(predictor, after, is_open)

    with torch.inference_mode():
        cache = loaded.model(input_ids=before, use_cache="prefix").past_key_values
        cache.crop(-LENGTH)
        parameters = signature(loaded.model.forward).parameters
        logits = loaded.model(
            input_ids=after[:, start:],
            **{"cache" if "cache" in parameters else "past_key_values": cache},
            position_ids=torch.arange(start, start + LENGTH)[None],
        ).logits[0]
    torch.testing.assert_close(given, logits[1:3], atol=1e-5, rtol=0)
    exact = full_logits(loaded, after[0].tolist())[start + 1 : start + 3]
    assert not torch.allclose(given, exact, atol=1e-6), "the prefix saw the new token"
