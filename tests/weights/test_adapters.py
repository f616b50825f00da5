"""Adapters: merged as peft merges them, or written as a folder that peft reads."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conversion.folders import (
    LLADA,
    Weights,
    assert_same_bytes,
    llada_shapes,
    make_arm,
    random_weights,
    read_weights,
    write_folder,
)
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from weights.memory import Memory

from mdmscale.conversion.convert_command import main
from mdmscale.conversion.exporting import ExportOptions, export_folder
from mdmscale.conversion.importing import ImportOptions, import_folder
from mdmscale.conversion.inspecting import inspect_model
from mdmscale.system import bounded
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


def test_a_pattern_of_an_adapter_cannot_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    bounded._child.cache_clear()
    monkeypatch.setattr(bounded, "SECONDS", 0.3)
    for pattern, reason in (("(.+)+\\d", "takes more than 0.3 s"), ("(", "missing ")):
        adapter = Adapter({**CONFIG, "rank_pattern": {pattern: 2}}, Memory({}))
        with pytest.raises(UserError, match=rf"adapter_config\.json: the pattern .*: {reason}"):
            adapter.scale("model.layers.x.self_attn.q_proj")
    bounded._child.cache_clear()


def test_the_product_is_added_in_fp32() -> None:
    weight = torch.full((2, 2), 256.0, dtype=torch.bfloat16)
    lora_a, lora_b = (torch.ones(2, 2, dtype=torch.bfloat16) for _ in range(2))
    merged = merged_weight(weight, lora_a, lora_b, scale=0.75)
    assert merged.dtype == torch.bfloat16 and (merged == 258.0).all()


def test_what_cannot_be_merged_is_said(model: Path, tmp_path: Path) -> None:
    config = model / "adapter" / "adapter_config.json"
    config.write_text(json.dumps({**CONFIG, "use_dora": True}))
    with pytest.raises(UserError, match=r"no plain LoRA \(use_dora\), so it is not merged; give --lora keep"):
        export_folder(model, tmp_path / "out", ExportOptions(to="hf"))
    config.write_text(json.dumps({**CONFIG, "alora_invocation_tokens": [1]}))
    with pytest.raises(UserError, match=r"no plain LoRA \(alora_invocation_tokens\)"):
        export_folder(model, tmp_path / "out", ExportOptions(to="hf"))
    config.write_text(json.dumps({**CONFIG, "peft_type": "IA3"}))
    with pytest.raises(UserError, match=r"no plain LoRA \(peft_type IA3\)"):
        export_folder(model, tmp_path / "out", ExportOptions(to="hf"))
    config.write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(UserError, match=r"adapter_config\.json has no r, so it is no LoRA adapter"):
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


def beside_weights(source: Path, **config: Any) -> Weights:
    """Put an adapter beside the weights of a folder, as a careless download leaves it."""
    adapter = adapter_weights(read_weights(source))
    (source / "adapter_config.json").write_text(json.dumps(CONFIG | config))
    save_file(adapter, source / "adapter_model.safetensors")
    return adapter


@pytest.mark.parametrize("values", [{}, {"attention_bias": True, "mlp_bias": True}, {"tied": True}], ids=str)
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_an_adapter_beside_the_weights_is_merged_by_import(
    tmp_path: Path, architecture: str, values: dict[str, Any]
) -> None:
    """As peft merges it, biases and all."""
    source = make_arm(tmp_path / "arm", architecture, **values)
    base: Any = AutoModelForCausalLM.from_pretrained(source).eval()
    beside_weights(source)
    ids = torch.arange(2, 20)[None]
    facts = import_folder(source, tmp_path / "ours", ImportOptions())
    assert facts["adapter"] == "merged"
    found = load_file(tmp_path / "ours" / "model.safetensors")
    assert not [name for name in found if "lora" in name]
    merged: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", is_causal=True).eval()
    with torch.no_grad():
        before = base(ids).logits.clone()
        expected = PeftModel.from_pretrained(base, source).merge_and_unload()(ids).logits
        torch.testing.assert_close(merged(ids).logits[..., :100], expected, rtol=1e-4, atol=1e-4)
    assert (before - expected).abs().max() > 1e-1, "the adapter says something"


def test_an_adapter_of_lladas_own_names_is_merged(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "llada", LLADA, random_weights(llada_shapes(LLADA)))
    adapter = beside_weights(source, target_modules=["q_proj", "ff_out"])
    import_folder(source, tmp_path / "ours", ImportOptions())
    base, ours = read_weights(source), load_file(tmp_path / "ours" / "model.safetensors")
    stem = "model.transformer.blocks.1.q_proj"
    lora_a, lora_b = (adapter[f"base_model.model.{stem}.lora_{side}.weight"] for side in "AB")
    expected = base[f"{stem}.weight"] + 2.0 * lora_b @ lora_a
    torch.testing.assert_close(ours["model.layers.1.self_attn.q_proj.weight"], expected)


def test_adapters_of_a_model_folder_are_found_wherever_they_lie(model: Path, tmp_path: Path) -> None:
    export_folder(model, tmp_path / "merged", ExportOptions(to="hf"))
    for file in (model / "adapter").iterdir():
        file.rename(model / file.name)
    (model / "adapter").rmdir()
    assert inspect_model(model)["adapter"] is True
    export_folder(model, tmp_path / "again", ExportOptions(to="hf"))
    assert_same_bytes(read_weights(tmp_path / "again"), read_weights(tmp_path / "merged"))
    (model / "adapter").mkdir()
    (model / "adapter" / "adapter_config.json").write_text(json.dumps(CONFIG))
    save_file({}, model / "adapter" / "adapter_model.safetensors")
    with pytest.raises(UserError, match="one adapter beside its weights and one in adapter/"):
        export_folder(model, tmp_path / "out", ExportOptions(to="hf"))


def test_an_old_adapters_bin_file_is_read(model: Path, tmp_path: Path) -> None:
    export_folder(model, tmp_path / "merged", ExportOptions(to="hf"))
    file = model / "adapter" / "adapter_model.safetensors"
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()
    export_folder(model, tmp_path / "again", ExportOptions(to="hf"))
    assert_same_bytes(read_weights(tmp_path / "again"), read_weights(tmp_path / "merged"))
    file.with_suffix(".bin").unlink()
    with pytest.raises(
        UserError, match=r"adapter_model\.safetensors: is missing, but adapter_config\.json is"
    ):
        export_folder(model, tmp_path / "out", ExportOptions(to="hf"))


def test_an_adapter_that_cannot_be_merged_stops_an_import(tmp_path: Path) -> None:
    source = make_arm(tmp_path / "arm", "llama")
    adapter = beside_weights(source)
    file = source / "adapter_model.safetensors"
    mend = r"merge it with peft \(merge_and_unload\), and import the result"
    save_file(adapter | {"base_model.model.lm_head.modules_to_save.weight": torch.zeros(2)}, file)
    with pytest.raises(UserError, match=f"is no LoRA pair of a weight; {mend}"):
        import_folder(source, tmp_path / "ours", ImportOptions())
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
    save_file(adapter | {name: torch.zeros(31, RANK)}, file)
    with pytest.raises(UserError, match=r"do not fit model\.layers\.0\.self_attn\.q_proj\.weight \(32, 32\)"):
        import_folder(source, tmp_path / "ours", ImportOptions())
    assert not (tmp_path / "ours").exists()


def test_keeping_needs_an_adapter(tmp_path: Path) -> None:
    import_folder(make_arm(tmp_path / "arm", "llama"), tmp_path / "ours", ImportOptions())
    with pytest.raises(UserError, match=r"--lora keep: .* has no adapter apart from its weights"):
        export_folder(tmp_path / "ours", tmp_path / "out", ExportOptions(to="hf", lora="keep"))


def test_an_adapter_alone_names_its_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({**CONFIG, "base_model_name_or_path": "x/base"}))
    for command in (["inspect", str(tmp_path)], ["import", str(tmp_path), "out"]):
        with pytest.raises(UserError, match="is a LoRA adapter for 'x/base' without that model; copy"):
            main(command)
