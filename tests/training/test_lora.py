"""LoRA under every ZeRO stage: what is trained, saved, merged and continued."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import run_script, tiny_values, train_all
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from mdmscale.config.model import ModelSection
from mdmscale.engine.checkpoint_weights import DeepSpeedCheckpoint
from mdmscale.models.backbone import build_backbone
from mdmscale.training.metrics import read_metrics

pytestmark = pytest.mark.distributed

STEPS, SAVED = 8, 4
LORA = {"rank": 4, "alpha": 8}
STAGES = range(4)


def lora_values(corpus: Path, folder: Path, name: str, stage: int, **model: Any) -> dict[str, Any]:
    values = tiny_values(corpus, folder)
    values["run"]["name"] = name
    values["model"] = {"path": str(folder / "base" / "hf"), "dtype": "fp32", "lora": LORA, **model}
    values["train"]["steps"] = STEPS
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
    train_all(1, [base, alone])
    train_all(2, two)
    return folder


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
