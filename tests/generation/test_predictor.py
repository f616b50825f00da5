"""The predictor compared with plain forward passes of the same model, one text at a time."""

from inspect import signature

import pytest
import torch
from generation.reference_cache import ExplicitCache

from mdmscale.generation import GenerationOptions, LoadedModel, Request, encode_prompt
from mdmscale.generation.batch import PaddedBatch, pad_requests
from mdmscale.generation.options import Cache, Padding
from mdmscale.generation.predictor import Predictor
from mdmscale.system.errors import UserError

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
    expected = []
    for request in requests(loaded):
        logits = full_logits(loaded, request.token_ids)
        places = range(len(request.token_ids) - LENGTH, len(request.token_ids))
        expected.append(torch.stack([logits[max(0, place - 1)] for place in places]))
    for padding in ("left", "right"):  # on the left the text without a prompt begins after padding
        batch = make_batch(loaded, padding)  # type: ignore[arg-type]
        predictor = Predictor(loaded.model, batch, logit_shift=True)
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


@pytest.mark.parametrize("kind, widths_of_second_passes", [("prefix", [LENGTH, 3]), ("dual", [3, 3])])
def test_a_block_s_first_cached_pass_is_a_full_one_and_the_next_is_short(
    loaded: LoadedModel, kind: Cache, widths_of_second_passes: list[int]
) -> None:
    batch = make_batch(loaded, block_length=3)
    plain, cached = (Predictor(loaded.model, batch, cache=cache) for cache in (None, kind))
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
    first, second = widths_of_second_passes
    assert widths[1::2] == [width, first, width, second]  # the cached passes
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


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("kind", ["prefix", "dual"])
def test_a_cache_keeps_the_keys_that_a_twin_keeps_by_hand(
    loaded: LoadedModel, kind: Cache, shift: bool
) -> None:
    """Texts of different lengths, two blocks of three passes; each pass commits a token."""
    batch = make_batch(loaded, block_length=3)
    predictor = Predictor(loaded.model, batch, cache=kind, logit_shift=shift)
    texts = [list(request.token_ids) for request in requests(loaded)]
    twins = [ExplicitCache(loaded.model, len(text)) for text in texts]
    tokens = batch.tokens.clone()
    for block in (0, 1):
        predictor.start_block()
        for step in range(3):
            is_open = (batch.blocks == block) & (tokens == batch.mask_token_id)
            expected = []
            for text, twin in zip(texts, twins, strict=True):
                first = len(text) - LENGTH + 3 * block
                end = first + 3 if kind == "dual" else len(text)
                window = list(range(max(0, first - shift), end)) if step else list(range(len(text)))
                logits = twin.logits(text, window)
                expected += [logits[window.index(max(0, first + k - shift))] for k in range(step, 3)]
                text[first + step] = 5 + step
            given = predict(predictor, tokens, is_open)
            torch.testing.assert_close(given, torch.stack(expected), atol=1e-5, rtol=0)
            for row, text in enumerate(texts):
                tokens[row, batch.is_real[row]] = torch.tensor(text)


def test_guidance_goes_with_the_dual_cache(loaded: LoadedModel) -> None:
    """With the prompt as it is and masked, each cached by itself."""
    batch = make_batch(loaded, block_length=3)
    predictor = Predictor(loaded.model, batch, cache="dual", guidance=1.5)
    predict(predictor, batch.tokens, batch.blocks == 0)
    tokens = batch.tokens.clone()
    rows = torch.arange(len(tokens))
    tokens[rows, (batch.blocks == 0).int().argmax(dim=1)] = 7
    given = predict(predictor, tokens, (batch.blocks == 0) & (tokens == batch.mask_token_id))
    expected = []
    for request in requests(loaded):
        pair = []
        for text in (list(request.token_ids), [batch.mask_token_id] * len(request.token_ids)):
            twin, first = ExplicitCache(loaded.model, len(text)), len(text) - LENGTH
            twin.logits(text, list(range(len(text))))
            text[first] = 7
            pair.append(twin.logits(text, [first, first + 1, first + 2])[1:])
        expected.append(pair[1] + (1 + 1.5) * (pair[0] - pair[1]))
    assert_same(given, expected)


def test_the_dual_cache_refuses_sliding_windows() -> None:
    from transformers import MistralConfig, MistralForCausalLM

    config = MistralConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        sliding_window=4,
    )
    config.is_causal = False
    options = GenerationOptions(length=4, block_length=2)
    batch = pad_requests([Request([3, 1, 1, 1, 1], 1)], options, 1, torch.device("cpu"))
    with pytest.raises(UserError, match="cache = dual: the model attends within a sliding window"):
        predict(Predictor(MistralForCausalLM(config), batch, cache="dual"), batch.tokens, batch.blocks == 0)
