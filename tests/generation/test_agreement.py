"""At temperature 0 texts are those of LLaDA's, Fast-dLLM's and Dream's published formulas, token by token."""

from pathlib import Path

import pytest
from generation.agreement import (
    FAST_DLLM,
    LENGTH,
    LLADA,
    PROMPTS,
    SCALES,
    WAYS,
    compare,
    logits_of,
    make_models,
    options_of,
)
from generation.reference_llada import fast_dllm

from mdmscale.generation import LoadedModel, encode_prompt, generate


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LoadedModel]:
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("kind", SCALES)
@pytest.mark.parametrize("way", WAYS)
def test_all_tokens_agree(models: dict[str, LoadedModel], way: str, kind: str) -> None:
    agreement = compare(models[kind], way, PROMPTS[:2])
    assert agreement.num_equal == agreement.num_tokens == 48, agreement


def test_rounded_scores_would_not(models: dict[str, LoadedModel]) -> None:
    """The models are sure enough to tell: this is the rule that the exact ranking has replaced."""
    assert compare(models["confident"], next(iter(LLADA)), PROMPTS[:4], decimals=5).share < 0.95


def test_fast_dllm_takes_as_many_passes(models: dict[str, LoadedModel]) -> None:
    loaded, mask = models["confident"], models["confident"].description.mask_token_id
    request = encode_prompt(loaded, PROMPTS[0], LENGTH)
    for way, values in FAST_DLLM.items():
        prompt = request.token_ids[: request.prompt_length]
        text, num_passes = fast_dllm(logits_of(loaded), prompt, LENGTH, mask, **values)
        (generation,) = generate(loaded, [request], options_of(way))
        assert (generation.token_ids, generation.num_forwards) == (text, num_passes)
        assert num_passes < LENGTH


def test_the_docs_have_every_way() -> None:
    page = (Path(__file__).parents[2] / "docs/generation.md").read_text()
    assert all(way in page for way in WAYS)
