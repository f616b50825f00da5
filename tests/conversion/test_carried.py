"""Every weight and every special token is carried over, or the folder is refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conversion.folders import (
    DREAM,
    LLADA,
    Weights,
    assert_same_bytes,
    dream_shapes,
    llada_shapes,
    make_arm,
    make_tokenizer,
    random_weights,
    read_weights,
    write_folder,
)
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from mdmscale.conversion.convert_command import main
from mdmscale.conversion.exporting import ExportOptions, export_folder
from mdmscale.conversion.importing import ImportOptions, import_folder
from mdmscale.conversion.inspecting import inspect_model
from mdmscale.system.errors import UserError

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
IDS = torch.arange(2, 26)[None]


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def set_config(folder: Path, **values: Any) -> None:
    kept = {name: value for name, value in (config_of(folder) | values).items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(kept))


def set_weights(folder: Path, weights: Weights) -> None:
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def causal_logits(folder: Path) -> torch.Tensor:
    config = AutoConfig.from_pretrained(folder)
    config.is_causal = True
    model: Any = AutoModelForCausalLM.from_pretrained(folder, config=config).eval()
    with torch.no_grad():
        return model(IDS).logits[..., :100]


# The head.


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_a_head_of_its_own_is_carried_through_import_and_exports(tmp_path: Path, architecture: str) -> None:
    source = make_arm(tmp_path / "arm", architecture)
    set_config(source, tie_word_embeddings=True)
    expected = causal_logits(source)
    found = inspect_model(source)
    assert found["tied"] is False and len(found["notes"]) == 1
    facts = import_folder(source, tmp_path / "ours", ImportOptions())
    assert any("head is tied, but it is another weight: kept" in note for note in facts["notes"])
    assert config_of(tmp_path / "ours")["tie_word_embeddings"] is False
    torch.testing.assert_close(causal_logits(tmp_path / "ours"), expected, rtol=0, atol=1e-5)
    export_folder(tmp_path / "ours", tmp_path / "back", ExportOptions(to="arm"))
    assert_same_bytes(read_weights(tmp_path / "back"), read_weights(source))
    assert torch.equal(causal_logits(tmp_path / "back"), expected)


def test_exports_carry_a_head_that_the_config_calls_tied(tmp_path: Path) -> None:
    """Such folders were written by runs before imports untied the config."""
    import_folder(make_arm(tmp_path / "source", "llama"), tmp_path / "ours", ImportOptions(logit_shift="off"))
    set_config(tmp_path / "ours", tie_word_embeddings=True)
    head = read_weights(tmp_path / "ours")[HEAD]
    for to, name in (("hf", HEAD), ("arm", HEAD), ("llada", "model.transformer.ff_out.weight")):
        export_folder(tmp_path / "ours", tmp_path / to, ExportOptions(to=to))
        exported = read_weights(tmp_path / to)[name]
        assert torch.equal(exported, head[: len(exported)]), to
        tied = config_of(tmp_path / to)["weight_tying" if to == "llada" else "tie_word_embeddings"]
        assert tied is False


def test_an_equal_head_is_one_weight(tmp_path: Path) -> None:
    source = make_arm(tmp_path / "arm", "llama", tied=True)
    weights = read_weights(source)
    set_weights(source, weights | {HEAD: weights[EMBEDDING].clone()})
    import_folder(source, tmp_path / "ours", ImportOptions())
    assert HEAD not in read_weights(tmp_path / "ours")
    assert config_of(tmp_path / "ours")["tie_word_embeddings"] is True
    torch.testing.assert_close(causal_logits(tmp_path / "ours"), causal_logits(source), rtol=0, atol=1e-5)


def test_a_tied_embedding_may_be_under_the_heads_name(tmp_path: Path) -> None:
    """transformers ties the two to whichever is there."""
    source = make_arm(tmp_path / "arm", "llama", tied=True)
    weights = read_weights(source)
    set_weights(source, weights | {HEAD: weights.pop(EMBEDDING)})
    import_folder(source, tmp_path / "ours", ImportOptions())
    torch.testing.assert_close(causal_logits(tmp_path / "ours"), causal_logits(source), rtol=0, atol=1e-5)


def test_an_untied_model_without_a_head_is_refused(tmp_path: Path) -> None:
    source = make_arm(tmp_path / "arm", "llama", tied=True)
    set_config(source, tie_word_embeddings=False)
    with pytest.raises(UserError, match=r"1 weights are missing, such as lm_head\.weight"):
        import_folder(source, tmp_path / "ours", ImportOptions())


def test_lladas_code_would_ignore_another_head(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "llada", LLADA, random_weights(llada_shapes(LLADA)))
    set_config(source, weight_tying=True)
    with pytest.raises(UserError, match="has weight_tying, but the weights have another head in ff_out"):
        import_folder(source, tmp_path / "ours", ImportOptions())


# Which files, and which precision.


@pytest.mark.parametrize("file_format", ["safetensors", "bin"])
def test_a_single_file_is_taken_before_an_index(tmp_path: Path, file_format: str) -> None:
    source = make_arm(tmp_path / "arm", "llama")
    weights = read_weights(source)
    (source / "model.safetensors").unlink()
    config = config_of(source)
    write_folder(source, config, {name: each + 1 for name, each in weights.items()}, file_format, 2)
    write_folder(source, config, weights, file_format)
    facts = import_folder(source, tmp_path / "ours", ImportOptions())
    index = {"safetensors": "model.safetensors", "bin": "pytorch_model.bin"}[file_format] + ".index.json"
    assert f"{index} is ignored, as a single file of weights is beside it" in facts["notes"]
    torch.testing.assert_close(causal_logits(tmp_path / "ours"), causal_logits(source), rtol=0, atol=1e-5)


def test_each_tensor_keeps_its_precision(tmp_path: Path) -> None:
    source = make_arm(tmp_path / "arm", "llama")
    weights = {n: each if "norm" in n else each.bfloat16() for n, each in read_weights(source).items()}
    set_weights(source, weights)
    facts = import_folder(source, tmp_path / "ours", ImportOptions())
    assert facts["dtype"] == "bfloat16, float32"
    export_folder(tmp_path / "ours", tmp_path / "back", ExportOptions(to="arm"))
    assert_same_bytes(read_weights(tmp_path / "back"), weights)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn], ids=str)
def test_weights_of_a_quantised_model_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    source = make_arm(tmp_path / "arm", "llama")
    weights = read_weights(source)
    name = "model.layers.1.mlp.down_proj.weight"
    set_weights(source, weights | {name: weights[name].to(dtype), "scales": torch.ones(2)})
    with pytest.raises(UserError, match=rf"{name} has the dtype {str(dtype)[6:]}, so the model is quantised"):
        import_folder(source, tmp_path / "ours", ImportOptions())


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "awq", "fp8"])
def test_a_quantised_models_config_is_refused(tmp_path: Path, method: str) -> None:
    source = make_arm(tmp_path / "arm", "qwen2")
    set_config(source, quantization_config={"quant_method": method})
    for command in (["inspect", str(source)], ["import", str(source), str(tmp_path / "ours")]):
        with pytest.raises(UserError, match=rf"config\.json: quantization_config \({method}\): quantised"):
            main(command)


def test_further_chat_templates_are_carried(tmp_path: Path) -> None:
    source = make_arm(tmp_path / "arm", "llama")
    templates = {"default": "{{ messages[0].content }}", "tool_use": "{{ tools }}"}
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.chat_template = templates
    tokenizer.save_pretrained(source)
    assert (source / "additional_chat_templates").is_dir()
    import_folder(source, tmp_path / "ours", ImportOptions())
    export_folder(tmp_path / "ours", tmp_path / "back", ExportOptions(to="arm"))
    for folder in ("ours", "back"):
        assert AutoTokenizer.from_pretrained(tmp_path / folder).chat_template == templates


# Special tokens.


@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen3"])
def test_ids_that_the_source_does_not_state_are_the_tokenizers(tmp_path: Path, architecture: str) -> None:
    source = make_arm(tmp_path / "arm", architecture)
    set_config(source, eos_token_id=..., bos_token_id=..., pad_token_id=...)  # removes them
    facts = import_folder(source, tmp_path / "ours", ImportOptions())
    assert facts["eos tokens"] == "1" and facts["notes"] == []
    export_folder(tmp_path / "ours", tmp_path / "back", ExportOptions(to="arm"))
    for folder in ("ours", "back"):
        config = config_of(tmp_path / folder)
        assert (config["eos_token_id"], config["bos_token_id"], config["pad_token_id"]) == (1, None, None)


def test_stated_ids_are_kept_and_a_word_is_not(tmp_path: Path) -> None:
    source = make_arm(tmp_path / "arm", "llama")
    make_tokenizer(source, reserved=("<|turn|>", "<|start|>"))
    set_config(source, eos_token_id=[98, 1], bos_token_id=99)
    facts = import_folder(source, tmp_path / "ours", ImportOptions())
    config = config_of(tmp_path / "ours")
    assert (config["eos_token_id"], config["bos_token_id"], facts["notes"]) == ([98, 1], 99, [])
    set_config(source, eos_token_id=2)
    facts = import_folder(source, tmp_path / "ours", ImportOptions(overwrite=True))
    (note,) = facts["notes"]
    assert note == "eos_token_id = 2 'word2' is no special token and ends no text; EOS is 1 '</s>'"
    assert config_of(tmp_path / "ours")["eos_token_id"] == 1


@pytest.mark.parametrize("family", ["llada", "dream"])
def test_ids_of_other_families_are_no_defaults_of_their_code(tmp_path: Path, family: str) -> None:
    config, shapes = {"llada": (LLADA, llada_shapes), "dream": (DREAM, dream_shapes)}[family]
    stated = {name: value for name, value in config.items() if name not in ("eos_token_id", "pad_token_id")}
    source = write_folder(tmp_path / family, stated, random_weights(shapes(config)))
    import_folder(source, tmp_path / "bare", ImportOptions())
    make_tokenizer(source)
    import_folder(source, tmp_path / "ours", ImportOptions())
    for folder, eos in (("bare", None), ("ours", 1)):
        ours = config_of(tmp_path / folder)
        assert (ours["eos_token_id"], ours["bos_token_id"], ours["pad_token_id"]) == (eos, None, None)


# What a format cannot express.


def refusals(folder: Path, to: str, destination: Path) -> list[str]:
    with pytest.raises(UserError) as caught:
        export_folder(folder, destination, ExportOptions(to=to))
    assert not destination.exists()
    return caught.value.problems


def test_all_that_llada_cannot_express_is_said_at_once(tmp_path: Path) -> None:
    rope = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
    values = {"hidden_act": "gelu", "head_dim": 16, "attention_bias": True, "mlp_bias": True}
    source = make_arm(tmp_path / "arm", "llama", rope_parameters=rope, **values)
    import_folder(source, tmp_path / "ours", ImportOptions())
    said = refusals(tmp_path / "ours", "llada", tmp_path / "out")
    fields = ("logit_shift", "head_dim = 16", "hidden_act = 'gelu'", "'linear'", "attention_bias", "mlp_bias")
    assert len(said) == len(fields)
    for line, field in zip(said, fields, strict=True):
        assert field in line and line.startswith("--to llada: ") and line.endswith("; give --to hf")


@pytest.mark.parametrize("to, shift", [("llada", "off"), ("dream", "on")])
def test_windows_are_not_silently_opened(tmp_path: Path, to: str, shift: str) -> None:
    import_folder(make_arm(tmp_path / "arm", "qwen2"), tmp_path / "ours", ImportOptions(logit_shift=shift))
    set_config(
        tmp_path / "ours",
        sliding_window=8,
        use_sliding_window=True,
        layer_types=["full_attention", "sliding_attention"],
    )
    (line,) = refusals(tmp_path / "ours", to, tmp_path / "out")
    assert "layer_types = full_attention, sliding_attention" in line
    if to == "llada":
        source = make_arm(tmp_path / "mistral", "mistral", sliding_window=None)
        import_folder(source, tmp_path / "windowed", ImportOptions(logit_shift="off"))
        set_config(tmp_path / "windowed", sliding_window=8)
        (line,) = refusals(tmp_path / "windowed", to, tmp_path / "out")
        assert "sliding_window = 8" in line


def test_dream_needs_its_own_width_of_heads(tmp_path: Path) -> None:
    import_folder(make_arm(tmp_path / "arm", "qwen2", head_dim=16), tmp_path / "ours", ImportOptions())
    (line,) = refusals(tmp_path / "ours", "dream", tmp_path / "out")
    assert "head_dim = 16 is not hidden_size / num_attention_heads = 8, which Dream's code needs" in line


def test_dropout_of_attention_is_written(tmp_path: Path) -> None:
    source = make_arm(tmp_path / "arm", "llama", attention_dropout=0.25)
    import_folder(source, tmp_path / "ours", ImportOptions(logit_shift="off"))
    export_folder(tmp_path / "ours", tmp_path / "out", ExportOptions(to="llada"))
    assert config_of(tmp_path / "out")["attention_dropout"] == 0.25
