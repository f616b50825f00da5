"""The sizes that the planner derives from a model's keys equal those of the built model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from mdmscale.analysis.planning.planned_shape import planned_shape
from mdmscale.config.model import ModelSection
from mdmscale.models.backbone import scratch_config
from mdmscale.models.lora import add_lora
from mdmscale.system.errors import UserError

KEYS: dict[str, Any] = {
    "tokenizer": "nowhere",
    "vocab_size": 512,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def built(options: ModelSection) -> torch.nn.Module:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(scratch_config(options, 0))
        if options.lora is not None:
            add_lora(model, options.lora, base="", seed=0)
    return model


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_parameters_are_those_of_the_built_model(family: str, tied: bool) -> None:
    options = ModelSection(**KEYS, architecture=family, tie_word_embeddings=tied, head_dim=20)
    model = built(options)
    assert planned_shape(options)[0].num_parameters == sum(each.numel() for each in model.parameters())


@pytest.mark.parametrize("targets", [None, ["q_proj", "v_proj"]])
def test_adapters_are_those_that_peft_makes(targets: list[str] | None) -> None:
    options = ModelSection.model_validate(
        KEYS | {"path": "nowhere/model", "lora": {"rank": 3, "target_modules": targets}}
    )
    trained = sum(each.numel() for each in built(options).parameters() if each.requires_grad)
    assert options.lora is not None
    assert planned_shape(options)[0].num_adapters(options.lora) == trained


def test_a_model_that_is_not_here_is_planned_from_its_keys() -> None:
    shape, note = planned_shape(ModelSection(**KEYS, path="nowhere/model"))
    assert "from the architecture keys; nowhere/model is not a local folder" in note
    assert shape == planned_shape(ModelSection(**KEYS))[0]


def test_a_folder_is_read_and_must_agree_with_the_keys(tmp_path: Path) -> None:
    scratch_config(ModelSection(**KEYS, architecture="qwen3"), 0).save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text()) | {"attention_bias": True}
    (tmp_path / "config.json").write_text(json.dumps(values))
    shape, note = planned_shape(ModelSection(path=str(tmp_path)))
    model = AutoModelForCausalLM.from_config(scratch_config(ModelSection(**KEYS, architecture="qwen3"), 0))
    biases = 2 * (shape.query + 2 * shape.key + shape.hidden)
    assert shape.num_parameters == sum(each.numel() for each in model.parameters()) + biases
    assert note == ""
    with pytest.raises(UserError, match=r"model\.vocab_size = 256"):
        planned_shape(ModelSection(path=str(tmp_path), vocab_size=256))
