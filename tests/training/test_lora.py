"""LoRA under every ZeRO stage: what is trained, saved, merged and continued."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import run_script, tiny_values, train_all
from conversion.folders import assert_same_bytes, make_arm, read_weights
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from mdmscale.config.model import ModelSection
from mdmscale.conversion.exporting import ExportOptions, export_folder
from mdmscale.conversion.importing import ImportOptions, import_folder
from mdmscale.engine.checkpoint_weights import DeepSpeedCheckpoint
from mdmscale.models.backbone import build_backbone
from mdmscale.models.opening import load_model
from mdmscale.system.errors import UserError
from mdmscale.training.metrics import read_metrics

pytestmark = pytest.mark.distributed

STEPS, SAVED = 8, 4
LORA = {"rank": 4, "alpha": 8}
STAGES = range(4)
# Models whose linear layers have biases: Qwen2's q, k and v, and a Llama's all.
BIASED = {"qwen2": {}, "llama": {"attention_bias": True, "mlp_bias": True}}
BIASED_RUNS = ["qwen2-0", "qwen2-3", "qwen2-resumed", "llama-1"]


def lora_values(corpus: Path, folder: Path, name: str, stage: int, **model: Any) -> dict[str, Any]:
    values = tiny_values(corpus, folder)
    values["run"]["name"] = name
    values["model"] = {"path": str(folder / "base" / "hf"), "dtype": "fp32", "lora": LORA, **model}
    values["train"] |= {"steps": STEPS, "ema_decay": 0.5}
    values["diffusion"] = {"masking": "mirror"}
    values["parallel"] = {"zero_stage": stage}
    values["checkpoint"] = {"every": SAVED, "keep": 0}
    return values


@pytest.fixture(scope="module")
def runs(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model, then adapters on it under every stage, on 1 rank, in bf16, and continued half-way."""
    folder = tmp_path_factory.mktemp("runs")
    base = tiny_values(corpus, folder)
    base["run"]["name"] = "base"
    base["model"]["tie_word_embeddings"] = False
    base["train"]["steps"] = 5
    alone = lora_values(corpus, folder, "alone", 0)
    two = [lora_values(corpus, folder, f"stage-{stage}", stage) for stage in STAGES]
    two.append(lora_values(corpus, folder, "bf16", 2, dtype="bf16", activation_checkpointing=True))
    two.append(
        lora_values(corpus, folder, "targets", 1, lora={**LORA, "target_modules": ["q_proj", "v_proj"]})
    )
    for stage in (0, 3):  # from the other's checkpoint
        start = folder / f"stage-{3 - stage}" / "checkpoints" / f"step-{SAVED:08d}"
        resumed = lora_values(corpus, folder, f"resumed-{stage}", stage)
        two.append(resumed | {"checkpoint": {"resume": str(start), "every": SAVED}})
    two += biased_values(corpus, folder)
    train_all(1, [base, alone])
    train_all(2, two)
    return folder


def biased_values(corpus: Path, folder: Path) -> list[dict[str, Any]]:
    """Adapters on imported models with random biases; `resumed` continues at another stage."""
    batch = []
    for name in BIASED_RUNS:
        architecture, stage = name.split("-")
        base = folder / f"{architecture}-base"
        if not base.exists():
            source = make_arm(folder / architecture, architecture, vocab_size=512, **BIASED[architecture])
            shutil.copytree(corpus / "tokenizer", source, dirs_exist_ok=True)
            import_folder(source, base, ImportOptions())
        values = lora_values(corpus, folder, name, 2 if stage == "resumed" else int(stage), path=str(base))
        if stage == "resumed":
            start = folder / "qwen2-0" / "checkpoints" / f"step-{SAVED:08d}"
            values["checkpoint"] = {"resume": str(start), "every": SAVED}
        batch.append(values)
    return batch


def losses(run: Path) -> np.ndarray:
    return np.array([record["loss"] for record in read_metrics(run)])


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(20)[None] + 5).logits


@pytest.mark.parametrize("stage", STAGES)
def test_losses_agree_in_every_layout(runs: Path, stage: int) -> None:
    np.testing.assert_allclose(losses(runs / f"stage-{stage}"), losses(runs / "alone"), rtol=1e-5)


@pytest.mark.parametrize("stage", [0, 3])
def test_adapters_go_on_in_another_stage(runs: Path, stage: int) -> None:
    resumed = losses(runs / f"resumed-{stage}")
    np.testing.assert_allclose(resumed, losses(runs / "alone")[SAVED:], rtol=1e-5)


@pytest.mark.parametrize("name", ["alone", "bf16", "targets", *(f"stage-{stage}" for stage in STAGES)])
def test_peft_opens_the_adapter_and_merging_gives_the_exported_model(runs: Path, name: str) -> None:
    base = AutoModelForCausalLM.from_pretrained(runs / "base" / "hf")
    before = logits(base)
    adapted = PeftModel.from_pretrained(base, runs / name / "adapter")
    merged = AutoModelForCausalLM.from_pretrained(runs / name / "hf", dtype=torch.float32)
    tolerance = 2e-1 if name == "bf16" else 1e-4
    torch.testing.assert_close(logits(adapted), logits(merged), rtol=tolerance, atol=tolerance)
    assert (logits(merged) - before).abs().max() > 1e-3, "it has learnt something"
    config = json.loads((runs / name / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(runs / "base" / "hf")
    assert config["r"] == 4


@pytest.mark.parametrize("name", ["alone", "bf16", *(f"stage-{stage}" for stage in STAGES)])
def test_the_average_is_of_the_adapters_alone(runs: Path, tmp_path: Path, name: str) -> None:
    """The run's hf_ema/ and adapter_ema/ are what a checkpoint gives."""
    run = runs / name
    export_folder(run, tmp_path / "apart", ExportOptions(to="hf", averaged=True, lora="keep"))
    export_folder(run, tmp_path / "merged", ExportOptions(to="hf", averaged=True, checkpoint=STEPS))
    adapters, own, kept = (
        load_file(each / "adapter_model.safetensors")
        for each in (run / "adapter_ema", run / "adapter", tmp_path / "apart" / "adapter")
    )
    assert_same_bytes(kept, adapters)
    assert_same_bytes(read_weights(tmp_path / "merged"), read_weights(run / "hf_ema"))
    assert adapters.keys() == own.keys()
    assert all(not torch.equal(adapter, own[key]) for key, adapter in adapters.items())


def test_only_the_named_layers_are_adapted_and_the_rest_stays_bit_for_bit(runs: Path) -> None:
    names = load_file(runs / "targets" / "adapter" / "adapter_model.safetensors").keys()
    assert {name.split(".")[-3] for name in names} == {"q_proj", "v_proj"}
    base, tuned = (
        AutoModelForCausalLM.from_pretrained(runs / name / "hf").state_dict() for name in ("base", "targets")
    )
    for name, weight in base.items():
        is_adapted = "q_proj" in name or "v_proj" in name
        assert torch.equal(weight, tuned[name]) != is_adapted, name


@pytest.mark.parametrize("stage", STAGES)
def test_a_checkpoint_holds_base_and_adapter_apart(runs: Path, stage: int) -> None:
    checkpoint = DeepSpeedCheckpoint(runs / f"stage-{stage}" / "checkpoints" / f"step-{STEPS:08d}")
    assert checkpoint.adapter is not None and checkpoint.adapter["lora_alpha"] == 8
    base = AutoModelForCausalLM.from_pretrained(runs / "base" / "hf").state_dict()
    adapter = load_file(runs / f"stage-{stage}" / "adapter" / "adapter_model.safetensors")
    assert set(checkpoint.tensors()) == set(base) | set(adapter)
    for name, weight in (base | adapter).items():
        assert torch.equal(checkpoint.read(name), weight), name


@pytest.mark.parametrize("name", BIASED_RUNS)
def test_biases_of_adapted_layers_stay_bit_for_bit(runs: Path, tmp_path: Path, name: str) -> None:
    base_folder = runs / f"{name.split('-')[0]}-base"
    base = read_weights(base_folder)
    biases = {key: each for key, each in base.items() if key.endswith(".bias")}
    assert len(biases) == {"qwen2": 6, "llama": 14}[name.split("-")[0]]
    assert all(each.abs().max() > 0 for each in biases.values())
    model: Any = AutoModelForCausalLM.from_pretrained(base_folder)
    expected = logits(PeftModel.from_pretrained(model, runs / name / "adapter").merge_and_unload())

    last = runs / name / "checkpoints" / f"step-{STEPS:08d}"
    export_folder(last, tmp_path / "merged", ExportOptions(to="hf"))
    for folder in (runs / name / "hf", tmp_path / "merged"):
        weights = read_weights(folder)
        assert weights.keys() == base.keys()
        assert_same_bytes({key: weights[key] for key in biases}, biases)
        torch.testing.assert_close(logits(load_model(folder).model), expected, rtol=1e-5, atol=1e-5)

    for source in (last, runs / name):
        kept = tmp_path / f"kept-{source.name}"
        export_folder(source, kept, ExportOptions(to="hf", lora="keep"))
        assert_same_bytes(read_weights(kept), base)
        adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(kept), kept / "adapter")
        torch.testing.assert_close(logits(adapted), expected, rtol=1e-5, atol=1e-5)


def test_a_run_keeps_the_adapter_that_it_has_exported(runs: Path, tmp_path: Path) -> None:
    """Of a run that went on after its export, keep is the same model as merge: that of hf/ and adapter/."""
    run = tmp_path / "run"
    shutil.copytree(runs / "stage-0", run)
    early = run / "checkpoints" / f"step-{SAVED:08d}"
    export_folder(early, tmp_path / "early", ExportOptions(to="hf", lora="keep"))
    shutil.rmtree(run / "adapter")
    shutil.copytree(tmp_path / "early" / "adapter", run / "adapter")
    export_folder(run, tmp_path / "kept", ExportOptions(to="hf", lora="keep"))
    assert_same_bytes(read_weights(tmp_path / "kept" / "adapter"), read_weights(run / "adapter"))
    shutil.rmtree(early)
    with pytest.raises(UserError, match=rf"--lora keep: no checkpoint of .* \(there are: {STEPS}\)"):
        export_folder(run, tmp_path / "out", ExportOptions(to="hf", lora="keep"))
    with pytest.raises(UserError, match=r"--lora keep: .*hf has no adapter apart from its weights"):
        export_folder(run / "hf", tmp_path / "out", ExportOptions(to="hf", lora="keep"))


@pytest.mark.parametrize("how", ["merge", "keep"])
def test_a_checkpoint_is_exported_with_its_adapter(runs: Path, tmp_path: Path, how: str) -> None:
    checkpoint = runs / "stage-3" / "checkpoints" / f"step-{STEPS:08d}"
    done = run_script(
        "tools/convert.py", "export", str(checkpoint), str(tmp_path / "out"), "--to", "hf", "--lora", how
    )
    assert done.returncode == 0, done.stderr
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    if how == "keep":
        model = PeftModel.from_pretrained(model, tmp_path / "out" / "adapter")
    merged = AutoModelForCausalLM.from_pretrained(runs / "stage-3" / "hf")
    torch.testing.assert_close(logits(model), logits(merged), rtol=1e-4, atol=1e-4)


def test_adapters_begin_as_nothing_and_by_the_seed_alone(runs: Path) -> None:
    options = ModelSection(path=str(runs / "base" / "hf"), dtype="fp32", lora=LORA)
    before = logits(AutoModelForCausalLM.from_pretrained(runs / "base" / "hf"))
    first, again, other = (build_backbone(options, 1e-3, seed).model for seed in (1, 1, 2))
    torch.testing.assert_close(logits(first), before, rtol=0, atol=0)
    name = "model.layers.0.self_attn.q_proj.lora_A.default.weight"
    weights = [dict(model.named_parameters())[name] for model in (first, again, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert all(each.requires_grad == ("lora_" in key) for key, each in first.named_parameters())


def test_other_adapters_do_not_continue(runs: Path, corpus: Path, tmp_path: Path) -> None:
    values = lora_values(corpus, runs, "stage-0", 0, lora={**LORA, "alpha": 16})
    (tmp_path / "config.yaml").write_text(json.dumps(values))
    done = run_script("launchers/train.py", "--config", str(tmp_path / "config.yaml"))
    assert done.returncode == 2
    assert "model.lora = {'rank': 4, 'alpha': 16" in done.stderr and "was trained with" in done.stderr


def test_layers_that_are_not_there_are_refused(runs: Path, corpus: Path, tmp_path: Path) -> None:
    values = lora_values(corpus, runs, "typo", 0, lora={**LORA, "target_modules": ["q_prj"]})
    (tmp_path / "config.yaml").write_text(json.dumps(values))
    done = run_script("launchers/train.py", "--config", str(tmp_path / "config.yaml"))
    assert done.returncode == 2
    assert "model.lora.target_modules: 'q_prj' is none of down_proj, gate_proj, k_proj" in done.stderr
    assert not (runs / "typo").exists()
