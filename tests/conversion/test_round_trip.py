"""Import and export give the same weight bytes, and configs that other code reads as the same model."""

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
from conversion.references import llada_logits
from transformers import AutoModelForCausalLM, AutoTokenizer

from mdmscale.conversion.exporting import ExportOptions, export_folder
from mdmscale.conversion.importing import ImportOptions, import_folder
from mdmscale.system.errors import UserError

# Every field of the dataclass ModelConfig in LLaDA's configuration_llada.py.
MODEL_CONFIG = """
    d_model n_heads n_kv_heads n_layers mlp_ratio mlp_hidden_size activation_type block_type block_group_size
    alibi alibi_bias_max rope rope_full_precision flash_attention attention_dropout multi_query_attention
    attention_layer_norm residual_dropout embedding_dropout input_emb_norm layer_norm_type
    layer_norm_with_affine rms_norm_eps attention_layer_norm_with_affine max_sequence_length rope_theta
    include_qkv_bias include_bias bias_for_layer_norm scale_logits vocab_size embedding_size weight_tying
    eos_token_id pad_token_id mask_token_id init_device init_fn init_std init_cutoff_factor precision
"""


def there_and_back(source: Path, to: str, **options: Any) -> Path:
    ours, back = source.with_name("ours"), source.with_name("back")
    import_folder(source, ours, ImportOptions(max_shard_bytes=30_000, **options))
    export_folder(ours, back, ExportOptions(to=to, max_shard_bytes=20_000))
    return back


def read_config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("file_format", ["safetensors", "bin"])
def test_llada(tmp_path: Path, file_format: str, dtype: torch.dtype) -> None:
    weights = random_weights(llada_shapes(LLADA), dtype)
    source = write_folder(tmp_path / "llada", LLADA, weights, file_format, num_shards=3)
    make_tokenizer(source)
    back = there_and_back(source, "llada")
    assert len(list(back.glob("*.safetensors"))) > 1, "the writer made shards"
    assert_same_bytes(read_weights(back), weights)
    config = read_config(back)
    assert config.keys() >= set(MODEL_CONFIG.split())
    assert {name: config[name] for name in LLADA} == LLADA
    assert config["torch_dtype"] == str(dtype).removeprefix("torch.")
    assert all(config[name] == 0.0 for name in config if name.endswith("_dropout"))
    assert AutoTokenizer.from_pretrained(back).encode("word5 </s>") == [5, 1]


def test_fused_projections_come_back_as_their_parts(tmp_path: Path) -> None:
    """LLaDA's llama block has separate tensors with the same bytes as the fused ones."""
    config = {**LLADA, "block_type": "sequential", "activation_type": "swiglu", "mlp_hidden_size": 96}
    weights = random_weights(llada_shapes(config))
    back = there_and_back(write_folder(tmp_path / "llada", config, weights), "llada")
    exported, exported_config = read_weights(back), read_config(back)
    fused: Weights = {}
    for name, tensor in exported.items():
        if name.endswith("q_proj.weight"):
            sides = [exported[name.replace("q_proj", f"{side}_proj")] for side in "qkv"]
            fused[name.replace("q_proj", "att_proj")] = torch.cat(sides)
        elif name.endswith("up_proj.weight"):
            gate = name.replace("up_proj", "ff_proj")
            fused[gate] = torch.cat([tensor, exported[gate]])
        elif not name.endswith(("k_proj.weight", "v_proj.weight", "ff_proj.weight")):
            fused[name] = tensor
    assert_same_bytes(fused, weights)
    assert exported_config["block_type"] == "llama" and exported_config["mlp_hidden_size"] == 48
    ids = torch.arange(2, 20)[None]
    torch.testing.assert_close(
        llada_logits(exported_config, exported, ids), llada_logits(config, weights, ids), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize(
    "values", [{"weight_tying": True}, {"include_qkv_bias": True}], ids=["tied", "biases"]
)
def test_llada_tied_or_with_biases(tmp_path: Path, values: dict[str, Any]) -> None:
    config = {**LLADA, **values}
    shapes = llada_shapes(config)
    if config.get("include_qkv_bias"):
        sides = ("q_proj.weight", "k_proj.weight", "v_proj.weight")
        biases = {
            name.replace(".weight", ".bias"): shape[:1]
            for name, shape in shapes.items()
            if name.endswith(sides)
        }
        shapes |= biases
    weights = random_weights(shapes)
    back = there_and_back(write_folder(tmp_path / "llada", config, weights), "llada")
    assert_same_bytes(read_weights(back), weights)
    exported = read_config(back)
    assert {name: exported[name] for name in config} == config


def test_dream(tmp_path: Path) -> None:
    weights = random_weights(dream_shapes(DREAM), torch.bfloat16)
    back = there_and_back(write_folder(tmp_path / "dream", DREAM, weights, num_shards=2), "dream")
    assert_same_bytes(read_weights(back), weights)
    config = read_config(back)
    assert {name: config[name] for name in DREAM} == DREAM


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2", "qwen3"])
def test_arm_with_an_added_mask_token(tmp_path: Path, architecture: str, tied: bool) -> None:
    window = {"sliding_window": 8} if architecture != "llama" else {}
    window |= {"use_sliding_window": True, "max_window_layers": 1} if architecture.startswith("qwen") else {}
    source = make_arm(tmp_path / "arm", architecture, tied, **window)
    back = there_and_back(source, "arm")
    assert_same_bytes(read_weights(back), read_weights(source))
    ids = torch.arange(2, 26)[None]
    original, again = (AutoModelForCausalLM.from_pretrained(folder).eval() for folder in (source, back))
    with torch.no_grad():
        assert torch.equal(original(ids).logits, again(ids).logits), "its window is back, too"
    before, after = (AutoTokenizer.from_pretrained(folder) for folder in (source, back))
    assert after.get_vocab() == before.get_vocab() and after.mask_token is None
    assert "mdm" not in read_config(back)


def test_hf_to_hf_is_the_same_model(tmp_path: Path) -> None:
    import_folder(make_arm(tmp_path / "arm", "qwen3"), tmp_path / "ours", ImportOptions())
    export_folder(tmp_path / "ours", tmp_path / "again", ExportOptions(to="hf"))
    assert_same_bytes(read_weights(tmp_path / "again"), read_weights(tmp_path / "ours"))
    assert read_config(tmp_path / "again") == read_config(tmp_path / "ours")


def test_precision_is_the_requested_one(tmp_path: Path) -> None:
    weights = random_weights(llada_shapes(LLADA), torch.bfloat16)
    source = write_folder(tmp_path / "llada", LLADA, weights)
    back = there_and_back(source, "llada", dtype="fp32")
    assert_same_bytes(read_weights(back), {name: tensor.float() for name, tensor in weights.items()})
    assert read_config(back)["torch_dtype"] == "float32"


def test_what_a_format_cannot_express_is_refused(tmp_path: Path) -> None:
    """LLaDA's code silently misreads a shifted model, and Dream's an unshifted one."""
    import_folder(make_arm(tmp_path / "qwen3", "qwen3"), tmp_path / "shifted", ImportOptions())
    llada = write_folder(tmp_path / "llada", LLADA, random_weights(llada_shapes(LLADA)))
    import_folder(llada, tmp_path / "plain", ImportOptions())
    import_folder(tmp_path / "qwen3", tmp_path / "plain-qwen3", ImportOptions(logit_shift="off"))
    for folder, to, message in (
        ("shifted", "llada", "logit_shift"),
        ("plain", "dream", "no logit_shift"),
        ("shifted", "dream", "it is a qwen3 model"),
        ("plain-qwen3", "llada", "LLaDA's code lacks parts of a qwen3 model"),
        ("llada", "hf", "llada"),
    ):
        with pytest.raises(UserError, match=message):
            export_folder(tmp_path / folder, tmp_path / "out", ExportOptions(to=to))
        assert not (tmp_path / "out").exists()
