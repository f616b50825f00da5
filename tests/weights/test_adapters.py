"""Adapters: merged as peft merges them, or written as a folder that peft reads."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conversion.folders import Weights, assert_same_bytes, make_arm, read_weights
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from weights.memory import Memory

from mdmscale.conversion.exporting import ExportOptions, export_folder
from mdmscale.conversion.importing import ImportOptions, import_folder
from mdmscale.system.errors import UserError
from mdmscale.weights.adapters import Adapter, merged_weight, split_adapter

RANK = 4
CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "r": RANK,
    "lora_alpha": 8,
    "lora_dropout": 0.0,
    "target_modules": ["q_proj", "down_proj"],
    "bias": "none",
}


def adapter_weights(base: Weights) -> Weights:
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, weight in base.items():
        if any(module in name for module in CONFIG["target_modules"]) and name.endswith("weight"):
            stem = f"base_model.model.{name.removesuffix('.weight')}"
            weights[f"{stem}.lora_A.weight"] = torch.randn(RANK, weight.shape[1], generator=generator)
            weights[f"{stem}.lora_B.weight"] = torch.randn(weight.shape[0], RANK, generator=generator)
    return weights


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """An imported model with an adapter next to its weights."""
    import_folder(make_arm(tmp_path / "arm", "qwen2"), tmp_path / "model", ImportOptions())
    (tmp_path / "model" / "adapter").mkdir()
    (tmp_path / "model" / "adapter" / "adapter_config.json").write_text(json.dumps(CONFIG))
    save_file(
        adapter_weights(read_weights(tmp_path / "model")),
        tmp_path / "model" / "adapter" / "adapter_model.safetensors",
    )
    return tmp_path / "model"


def test_merging_adds_the_scaled_product(model: Path, tmp_path: Path) -> None:
    export_folder(model, tmp_path / "merged", ExportOptions(to="hf"))
    base, merged = read_weights(model), read_weights(tmp_path / "merged")
    adapter = load_file(model / "adapter" / "adapter_model.safetensors")
    assert base.keys() == merged.keys() and not (tmp_path / "merged" / "adapter").exists()
    num_adapted = 0
    for name, weight in base.items():
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{stem}.lora_A.weight" in adapter:
            product = adapter[f"{stem}.lora_B.weight"] @ adapter[f"{stem}.lora_A.weight"]
            torch.testing.assert_close(merged[name], weight + 2.0 * product)
            num_adapted += 1
        else:
            assert torch.equal(merged[name], weight)
    assert num_adapted == 4


def test_the_merged_model_is_what_peft_computes(model: Path, tmp_path: Path) -> None:
    export_folder(model, tmp_path / "merged", ExportOptions(to="hf"))
    ids = torch.arange(2, 20)[None]
    base: Any = AutoModelForCausalLM.from_pretrained(model)
    adapted = PeftModel.from_pretrained(base, model / "adapter").eval()
    merged: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, adapted(ids).logits, rtol=1e-4, atol=1e-4)


def test_keeping_leaves_the_base_as_it_is(model: Path, tmp_path: Path) -> None:
    export_folder(model, tmp_path / "kept", ExportOptions(to="arm", lora="keep"))
    export_folder(model, tmp_path / "again", ExportOptions(to="hf", lora="keep"))
    assert_same_bytes(read_weights(tmp_path / "again"), read_weights(model))
    assert_same_bytes(read_weights(tmp_path / "kept"), read_weights(tmp_path / "arm"))
    for folder in ("kept", "again"):
        adapter = tmp_path / folder / "adapter"
        assert json.loads((adapter / "adapter_config.json").read_text()) == CONFIG
        assert_same_bytes(read_weights(adapter), read_weights(model / "adapter"))


def test_the_adapter_of_a_checkpoint_is_told_by_its_names(model: Path) -> None:
    base, adapter = read_weights(model), read_weights(model / "adapter")
    plain, found = split_adapter(Memory({**base, **adapter}), CONFIG)
    assert plain.tensors().keys() == base.keys()
    assert found.weights.tensors().keys() == adapter.keys()


def test_scales_follow_pefts_patterns() -> None:
    adapter = Adapter(
        {**CONFIG, "rank_pattern": {"layers.1.mlp.up_proj": 2}, "alpha_pattern": {"q_proj": 32}}, Memory({})
    )
    assert adapter.scale("model.layers.0.mlp.up_proj") == 2.0
    assert adapter.scale("model.layers.1.mlp.up_proj") == 4.0
    assert adapter.scale("model.layers.1.self_attn.q_proj") == 8.0
    assert Adapter({**CONFIG, "use_rslora": True}, Memory({})).scale("x") == 4.0


def test_the_product_is_added_in_fp32() -> None:
    weight = torch.full((2, 2), 256.0, dtype=torch.bfloat16)
    lora_a, lora_b = (torch.ones(2, 2, dtype=torch.bfloat16) for _ in range(2))
    merged = merged_weight(weight, lora_a, lora_b, scale=0.75)
    assert merged.dtype == torch.bfloat16 and (merged == 258.0).all()


def test_what_cannot_be_merged_is_said(model: Path, tmp_path: Path) -> None:
    config = model / "adapter" / "adapter_config.json"
    config.write_text(json.dumps({**CONFIG, "use_dora": True}))
    with pytest.raises(UserError, match="no plain LoRA; give --lora keep"):
        export_folder(model, tmp_path / "out", ExportOptions(to="hf"))
    config.write_text(json.dumps(CONFIG))
    file = model / "adapter" / "adapter_model.safetensors"
    save_file({**load_file(file), "base_model.model.lm_head.weight": torch.zeros(2)}, file)
    with pytest.raises(UserError, match=r"base_model\.model\.lm_head\.weight is no LoRA pair of a weight"):
        export_folder(model, tmp_path / "out", ExportOptions(to="hf"))
    file.write_bytes(b"x")
    with pytest.raises(UserError, match=r"adapter_model\.safetensors: is damaged"):
        export_folder(model, tmp_path / "out", ExportOptions(to="hf"))


def test_an_unpaired_half_of_an_adapter_is_refused(model: Path, tmp_path: Path) -> None:
    file = model / "adapter" / "adapter_model.safetensors"
    weights = load_file(file)
    del weights["base_model.model.model.layers.0.mlp.down_proj.lora_B.weight"]
    save_file(weights, file)
    with pytest.raises(UserError, match=r"down_proj\.lora_A\.weight is no LoRA pair of a weight"):
        export_folder(model, tmp_path / "out", ExportOptions(to="hf"))
