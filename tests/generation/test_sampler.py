"""A text from the tiny model is the same alone, in any batch, with any padding and in any run."""

from typing import Any

import pytest

from mdmscale.generation import (
    GenerationOptions,
    LoadedModel,
    Request,
    encode_ids,
    encode_infilling,
    encode_prompt,
    generate,
    stream,
)
from mdmscale.system.errors import UserError

LENGTH = 12
PROMPTS = ("def add(a", "x", None, "for step in range(steps): print", "return")


def responses(loaded: LoadedModel) -> list[Request]:
    return [sample for prompt in PROMPTS for sample in encode_prompt(loaded, prompt, LENGTH).samples(2)]


def infillings(loaded: LoadedModel) -> list[Request]:
    return [encode_infilling(loaded, text) for text in ("for <|mask|> in a:", "<|mask|><|mask|> b <|mask|>")]


OPTIONS: list[dict[str, Any]] = [
    {},
    {"steps": 5},
    {"remasking": "random", "steps": 4},
    {"remasking": "margin", "block_length": 4},
    {"remasking": "entropy", "temperature": 1.0},
    {"temperature": 1.0, "top_p": 0.9, "block_length": 5},
    {"threshold": 0.0039, "temperature": 0.7},
    {"guidance": 1.0, "temperature": 1.0, "eos": "late"},
    {"cache": "prefix", "block_length": 4, "temperature": 1.0},
    {"cache": "prefix", "block_length": 4, "guidance": 0.5, "threshold": 0.0039},
    {"cache": "dual", "block_length": 4, "temperature": 1.0},
    {"factor": 2.0, "remasking": "margin"},
    {"schedule": "dream", "scores": "sampling", "temperature": 0.5, "top_k": 20, "order_temperature": 0.1},
    {"schedule": "independent", "remasking": "random", "steps": 5},
]


@pytest.mark.parametrize("values", OPTIONS, ids=str)
def test_a_text_is_the_same_alone_and_in_any_batch(loaded: LoadedModel, values: dict[str, Any]) -> None:
    requests = responses(loaded) + ([] if values.get("cache") else infillings(loaded))
    paddings = ("left",) if values.get("cache") else ("left", "right")
    alone = None
    for padding in paddings:
        options = GenerationOptions(length=LENGTH, padding=padding, **values)
        for batch_size in (1, 3, len(requests)):
            token_ids = [each.token_ids for each in generate(loaded, requests, options, batch_size)]
            alone = alone or token_ids
            assert token_ids == alone, (padding, batch_size)
        backwards = [each.token_ids for each in generate(loaded, requests[::-1], options, 4)]
        assert backwards[::-1] == alone
    mask = loaded.description.mask_token_id
    for request, token_ids in zip(requests, alone or [], strict=True):
        assert mask not in token_ids
        given = [(a, b) for a, b in zip(request.token_ids, token_ids, strict=True) if a != mask]
        assert all(a == b for a, b in given)


def test_seeds_and_samples_differ(loaded: LoadedModel) -> None:
    request = encode_prompt(loaded, "def", LENGTH)
    options = [GenerationOptions(length=LENGTH, temperature=1.0, seed=seed) for seed in (1, 1, 2)]
    first, again, other = ([each.token_ids for each in generate(loaded, [request], each)] for each in options)
    assert first == again != other
    samples = list(generate(loaded, request.samples(4), options[0]))
    assert len({tuple(sample.token_ids) for sample in samples}) == 4


def test_fixed_steps_are_the_passes_taken(loaded: LoadedModel) -> None:
    requests = [encode_prompt(loaded, "def", LENGTH), encode_infilling(loaded, "<|mask|> = <|mask|>")]
    numbers = [
        each.num_forwards for each in generate(loaded, requests, GenerationOptions(length=LENGTH, steps=6))
    ]
    assert numbers == [6, 2]


def test_token_ids_with_masks_are_an_infilling(loaded: LoadedModel) -> None:
    mask = loaded.description.mask_token_id
    assert encode_ids(loaded, [3, mask, 4], 8) == Request([3, mask, 4], None, "3 token ids")
    assert encode_ids(loaded, [3, 4], 2).token_ids == [3, 4, mask, mask]


def test_an_infilling_is_shown_whole_and_a_response_without_its_prompt(loaded: LoadedModel) -> None:
    requests = [encode_infilling(loaded, "for <|mask|> in"), encode_prompt(loaded, "for ", 2)]
    infilled, response = generate(loaded, requests, GenerationOptions(length=2))
    assert infilled.text.startswith("for ") and infilled.text.endswith(" in")
    assert not response.text.startswith("for ")


def test_rows_that_only_pad_the_embedding_are_never_sampled(loaded: LoadedModel) -> None:
    options = GenerationOptions(length=30, temperature=50.0)  # next to uniform over the vocabulary
    requests = encode_prompt(loaded, None, 30).samples(20)
    tokens = [token for each in generate(loaded, requests, options, 20) for token in each.token_ids]
    assert max(tokens) < len(loaded.tokenizer) < loaded.description.vocab_size


def test_stream_shows_every_step(loaded: LoadedModel) -> None:
    request = encode_prompt(loaded, "def", 4)
    frames = list(stream(loaded, [request], GenerationOptions(length=4)))
    masks_left = [frame.row(0).count(loaded.description.mask_token_id) for frame in frames]
    assert masks_left == [3, 2, 1, 0]


def test_a_cached_batch_needs_blocks_in_the_same_columns(loaded: LoadedModel) -> None:
    options = GenerationOptions(length=4, block_length=2, cache="prefix")
    mixed = [encode_prompt(loaded, "def", 4), encode_prompt(loaded, "def", 6)]
    for requests in (mixed, infillings(loaded)):
        with pytest.raises(UserError, match="cache: a batch must hold responses of one length"):
            list(generate(loaded, requests, options))
