"""Sampling from an autoregressive model: the tokens of transformers, in any batch; and what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from models.tiny_folder import write_model_folder

from mdmscale.generation import (
    GenerationOptions,
    LoadedModel,
    Request,
    encode_ids,
    encode_infilling,
    encode_prompt,
    generate,
    load_model,
    stream,
)
from mdmscale.generation.generate_command import main
from mdmscale.models.opening import describe_model
from mdmscale.system.errors import UserError

PROMPTS = ("def add(a", "for", "    print(step) return")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as the export of an autoregressive run."""
    folder = write_model_folder(tmp_path_factory.mktemp("ar"))
    config = json.loads((folder / "config.json").read_text())
    config["is_causal"] = True
    config["mdm"] |= {"logit_shift": True, "objective": "ar"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as an ordinary Hugging Face folder, which says nothing about masks."""
    folder = write_model_folder(tmp_path_factory.mktemp("plain"))
    config = json.loads((folder / "config.json").read_text())
    del config["mdm"], config["is_causal"]
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def loaded(folder: Path) -> LoadedModel:
    return load_model(folder, "fp32")


def requests(loaded: LoadedModel, *lengths: int) -> list[Request]:
    return [encode_prompt(loaded, text, length) for text, length in zip(PROMPTS, lengths, strict=False)]


def of_transformers(loaded: LoadedModel, request: Request) -> list[int]:
    """The greedy tokens of transformers' generate, filled up with EOS."""
    prompt = torch.tensor([request.token_ids[: request.prompt_length]])
    size = len(request.token_ids)
    model: Any = loaded.model
    tokens = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        max_length=size,
        eos_token_id=sorted(loaded.eos_ids),
        pad_token_id=sorted(loaded.eos_ids)[0],
        suppress_tokens=[loaded.description.mask_token_id, *range(len(loaded.tokenizer), 320)],
    )[0].tolist()
    return tokens + [tokens[-1]] * (size - len(tokens))


@pytest.mark.parametrize("batch_size", [1, 3])
def test_greedy_tokens_are_those_of_transformers(loaded: LoadedModel, batch_size: int) -> None:
    """In a batch prompts of 3 lengths are padded on the left, and responses have 3 lengths too."""
    asked = requests(loaded, 12, 20, 5)
    found = generate(loaded, asked, batch_size=batch_size)
    for request, generation in zip(asked, found, strict=True):
        assert generation.token_ids == of_transformers(loaded, request)


def test_a_text_depends_on_its_seed_and_not_on_its_batch(loaded: LoadedModel) -> None:
    asked = requests(loaded, 12, 20, 5)
    options = GenerationOptions(temperature=1.0, top_p=0.9, seed=4)
    together, alone, again = (
        [each.token_ids for each in generate(loaded, asked, chosen, size)]
        for chosen, size in ((options, 3), (options, 1), (GenerationOptions(temperature=1.0, seed=5), 3))
    )
    assert together == alone
    assert together != again


def test_a_response_ends_at_its_eos(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """EOS is what the model says fourth: then the rest is EOS, and costs no forward."""
    (request,) = requests(loaded, 12)
    (whole,) = generate(loaded, [request], GenerationOptions(eos="never"))
    first = request.prompt_length or 0
    fourth = whole.token_ids[first + 3]
    place = whole.token_ids[first:].index(fourth)
    monkeypatch.setitem(vars(loaded), "eos_ids", frozenset([fourth]))
    frames = list(stream(loaded, [request]))
    assert len(frames) == place + 1 == frames[-1].num_forwards[0]
    assert frames[-1].row(0) == whole.token_ids[: first + place] + [fourth] * (12 - place)
    assert sum(int(frame.is_new.sum()) for frame in frames) == 12
    (generation,) = generate(loaded, [request])
    assert generation.num_forwards == place + 1


def test_an_ordinary_folder_is_sampled_as_it_is(plain: Path, loaded: LoadedModel) -> None:
    description = describe_model(plain, autoregressive=True)
    assert (description.objective, description.mask_token_id) == ("ar", None)
    ordinary = load_model(description, "fp32")
    request = encode_prompt(ordinary, PROMPTS[0], 8)
    assert request.token_ids.count(description.wanted_id) == 8
    (generation,) = generate(ordinary, [request])
    assert generation.token_ids[: request.prompt_length] == request.token_ids[: request.prompt_length]
    assert all(0 <= token < 320 for token in generation.token_ids)
    with pytest.raises(UserError, match="has no mdm section"):
        describe_model(plain)


def test_an_mdm_is_not_described_as_autoregressive(model_folder: Path, folder: Path) -> None:
    with pytest.raises(UserError, match="is a masked diffusion model, not an autoregressive one"):
        describe_model(model_folder, autoregressive=True)
    assert describe_model(folder, autoregressive=True) == describe_model(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "other"}, "mdm.objective = 'other': must be one of full, ar"),
        ({"is_causal": False}, "is_causal is False; an autoregressive model needs true"),
    ],
)
def test_a_contradictory_config_is_refused(
    folder: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["mdm"]["objective"] = changes.get("objective", "ar")
    config["is_causal"] = changes.get("is_causal", True)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        describe_model(tmp_path)


def test_options_of_denoising_are_refused_by_name(folder: Path) -> None:
    options = ("--steps", "4", "--block-length", "4", "--guidance", "1", "--eos", "late")
    with pytest.raises(UserError) as refused:
        main([str(folder), "--prompt", "def", "--length", "8", *options])
    for name in ("steps = 4", "block_length = 4", "guidance = 1.0"):
        assert f"{name}: is about filling in masks" in str(refused.value)
    assert "eos = late" in str(refused.value)


def test_a_program_may_give_the_settings_of_a_task(loaded: LoadedModel) -> None:
    """They are those of denoising, and change nothing."""
    asked = requests(loaded, 12, 12, 12)
    settings = GenerationOptions(length=12, steps=4, block_length=4, eos="late", scores="sampling", top_p=0.9)
    plain, set_up = (list(generate(loaded, asked, options)) for options in (None, settings))
    assert plain == set_up


def test_what_has_no_beginning_is_refused(loaded: LoadedModel) -> None:
    with pytest.raises(UserError, match="continues prompts but does not fill in masks"):
        encode_infilling(loaded, "for <|mask|> in")
    with pytest.raises(UserError, match="continues prompts but does not fill in masks"):
        encode_ids(loaded, [5, loaded.description.wanted_id, 7], 4)
    with pytest.raises(UserError, match="needs a token to begin with"):
        encode_prompt(loaded, None, 4)


def test_the_command_samples_from_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(folder), "--prompt", "def add", "--length", "8", "--temperature", "1", "--watch"]) == 0
    captured = capsys.readouterr()
    assert captured.out and "1 texts, 8 tokens" in captured.err
