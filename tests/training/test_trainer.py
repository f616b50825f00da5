"""Whole runs: ZeRO stages in bf16, fine-tuning from an export, probes in training, a loss that is NaN."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_values, train_all
from transformers import AutoModelForCausalLM

from mdmscale.config.model import ModelSection
from mdmscale.config.run import RunConfig
from mdmscale.data.indexed import IndexedWriter, token_dtype
from mdmscale.data.preparation.arithmetic import problems
from mdmscale.models.backbone import build_backbone
from mdmscale.parallel.ranks import Ranks
from mdmscale.system.stop import StopRequest
from mdmscale.training.metrics import read_metrics
from mdmscale.training.setup import set_up
from mdmscale.training.state import TrainingState
from mdmscale.training.trainer import train, train_step

BF16 = [f"bf16-{stage}" for stage in range(4)]


def changed(values: dict[str, Any], name: str, **sections: dict[str, Any]) -> dict[str, Any]:
    """A config with another run name, and with the keys of `sections` replaced."""
    changes = {"run": {"name": name}, **sections}
    return {**values, **{section: {**values.get(section, {}), **keys} for section, keys in changes.items()}}


def batch_of_runs(corpus: Path, folder: Path) -> list[dict[str, Any]]:
    """Every run of this module, in an order in which each run finds the files that it needs."""
    plain = tiny_values(corpus, folder)
    plain["train"]["steps"] = 40
    plain["eval"] = {"every": 10, "samples": 16}
    plain["diffusion"] = {"masking": "mirror"}
    bf16 = [
        changed(
            plain,
            name,
            model={"dtype": "bf16"},
            parallel={"zero_stage": stage},
            train={"micro_batch_size": 2},
        )
        for stage, name in enumerate(BF16)
    ]
    probed = changed(
        plain,
        "probed",
        train={"steps": 10},
        diffusion={"t_sampler": "p_pots", "p_pots": {"probe_steps": [0, 5], "num_x0": 4, "num_t": 9}},
        checkpoint={"every": 5},
        logging={"tensorboard": True},
    )
    few_sequences = changed(plain, "few", data={"path": str(write_few_sequences(folder)), "held_out": 0.2})
    sft = changed(plain, "sft", diffusion={"t_sampler": "stratified"})
    sft["model"] = {"path": str(folder / "bf16-1" / "hf"), "dtype": "fp32"}
    sft["data"] = {
        "kind": "sft",
        "path": str(write_pairs(folder)),
        "sequence_length": 24,
        "held_out": 0.1,
        "fill_multiple": 4,
    }
    at_rest = changed(sft, "at_rest", train={"steps": 1}, optimizer={"lr": 1e-12, "warmup_steps": 0})
    return copy.deepcopy([*bf16, probed, few_sequences, sft, at_rest])


def write_few_sequences(folder: Path) -> Path:
    """A shard of 10 documents of 32 tokens. 40 steps of 8 samples see it 40 times."""
    with IndexedWriter(folder / "few-00000", token_dtype(512)) as writer:
        for number in range(10):
            writer.add_document(np.arange(32) * 3 % (40 + number) + 10)
    return folder / "few-00000"


def write_pairs(folder: Path) -> Path:
    path = folder / "pairs.jsonl"
    lines = [json.dumps({"prompt": prompt, "response": answer}) for prompt, answer in problems(60, 1, seed=0)]
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def runs(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    train_all(2, batch_of_runs(corpus, folder))
    return folder


def evaluations(folder: Path) -> list[float]:
    return [record["eval_loss"] for record in read_metrics(folder) if "eval_loss" in record]


@pytest.mark.distributed
@pytest.mark.parametrize("name", [*BF16, "few", "sft"])
def test_training_reduces_the_loss(runs: Path, name: str) -> None:
    records = read_metrics(runs / name)
    losses = [record["loss"] for record in records]
    assert len(losses) == 40
    for record in records:
        assert math.isfinite(record["loss"]) and math.isfinite(record["grad_norm"])
        assert record["grad_norm"] > 0
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:10])
    held_out = evaluations(runs / name)
    assert len(held_out) == 4
    assert held_out[-1] < held_out[0]


@pytest.mark.distributed
def test_bf16_stages_learn_alike(runs: Path) -> None:
    """They agree to bf16's rounding, because each stage sums in its own order."""
    reference = evaluations(runs / "bf16-0")
    for name in BF16[1:]:
        assert evaluations(runs / name) == pytest.approx(reference, rel=0.02)


@pytest.mark.distributed
@pytest.mark.parametrize("name", BF16)
def test_bf16_runs_export_bf16(runs: Path, name: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(runs / name / "hf")
    assert model.dtype == torch.bfloat16


@pytest.mark.distributed
def test_fine_tuning_starts_from_the_exported_weights(runs: Path) -> None:
    """A step with a tiny learning rate leaves the weights as they are."""
    start = AutoModelForCausalLM.from_pretrained(runs / "bf16-1" / "hf", dtype=torch.float32).state_dict()
    after = AutoModelForCausalLM.from_pretrained(runs / "at_rest" / "hf").state_dict()
    tuned = AutoModelForCausalLM.from_pretrained(runs / "sft" / "hf")
    for name, weight in start.items():
        torch.testing.assert_close(after[name], weight, rtol=0, atol=1e-9, msg=name)
    assert (tuned.state_dict()["lm_head.weight"] - start["lm_head.weight"]).abs().max() > 1e-3
    assert tuned.config.mdm["source"] == "scratch", "the first ancestor's"
    assert tuned.dtype == torch.float32


@pytest.mark.distributed
def test_fine_tuning_encodes_the_pairs_once(runs: Path) -> None:
    (shard,) = (runs / "sft" / "data").glob("*.idx")
    assert {path.suffix for path in shard.parent.iterdir()} == {".idx", ".bin", ".npy", ".json"}


@pytest.mark.distributed
@pytest.mark.parametrize(("name", "epoch"), [("few", 8), ("sft", 54)])
def test_the_ends_of_epochs_are_crossed(runs: Path, name: str, epoch: int) -> None:
    records = read_metrics(runs / name)
    assert [record["consumed_samples"] for record in records] == [8 * step for step in range(1, 41)]
    assert records[-1]["consumed_samples"] > 5 * epoch
    assert all(record["masked_tokens"] > 0 for record in records)


@pytest.mark.distributed
def test_a_probe_on_the_way_changes_the_density_and_shows_it(runs: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = runs / "probed"
    figures = sorted(path.name for path in (folder / "figures").iterdir())
    assert figures == ["loss.png", "p_pots_step_00000000.png", "p_pots_step_00000005.png"]
    first, second = (
        np.array(state.components["p_pots"]["density"]["density"])
        for state in (TrainingState.read(folder / "checkpoints" / f"step-{step:08d}") for step in (5, 10))
    )
    assert np.ptp(first) > 1e-3 and np.ptp(second) > 1e-3, "neither is uniform"
    assert np.abs(first - second).max() > 1e-3
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert [event.step for event in events.Images("p_pots")] == [0, 5]


def test_a_step_whose_loss_is_not_finite_is_skipped(tiny: dict[str, Any], ranks: Ranks) -> None:
    """It leaves the weights, p(t) and the baseline alone, is named in its metrics, and the run goes on."""
    run = set_up(
        RunConfig.model_validate(
            changed(tiny, "poisoned", diffusion={"t_sampler": "uniform"}, parallel={"zero_stage": 0})
        ),
        ranks,
    )
    parameters = dict(run.engine.deepspeed.module.named_parameters())
    train_step(run, StopRequest(run.folder.path))
    weight = run.backbone.model.model.norm.weight
    kept, norms = float(weight[0].detach()), len(run.gradient_norms._recent)
    with torch.no_grad():
        weight[0] = math.nan
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    states = {name: run.components[name].state_dict() for name in ("p_pots", "baseline")}
    record, _ = train_step(run, StopRequest(run.folder.path))
    assert (record["skipped"], record["skipped_recently"], run.step) == ("not finite", 1, 2)
    for name, parameter in parameters.items():
        torch.testing.assert_close(parameter, before[name], rtol=0, atol=0, equal_nan=True, msg=name)
    assert {name: run.components[name].state_dict() for name in states} == states
    with torch.no_grad():
        weight[0] = kept
    record, _ = train_step(run, StopRequest(run.folder.path))
    assert "skipped" not in record and record["skipped_recently"] == 1
    assert math.isfinite(record["loss"]) and len(run.gradient_norms._recent) == norms + 1
    assert run.skipped.describe() == "step 2 (1 not finite)"


def test_gradients_that_are_not_finite_leave_the_weights_alone(tiny: dict[str, Any], ranks: Ranks) -> None:
    """With ZeRO-0 and fp32 Engine clips and skips. At other stages DeepSpeed does."""
    zero_0 = changed(tiny, "steep", diffusion={"t_sampler": "uniform"}, parallel={"zero_stage": 0})
    run = set_up(RunConfig.model_validate(zero_0), ranks)
    weight = run.backbone.model.model.norm.weight
    before = weight.detach().clone()
    steep = weight.register_hook(lambda gradient: gradient * math.inf)
    record, _ = train_step(run, StopRequest(run.folder.path))
    steep.remove()
    assert not math.isfinite(record["grad_norm"])
    assert torch.equal(weight, before)
    record, _ = train_step(run, StopRequest(run.folder.path))
    assert math.isfinite(record["grad_norm"])
    assert not torch.equal(weight, before)


def test_a_run_whose_loss_is_not_finite_writes_neither_checkpoint_nor_model(
    tiny: dict[str, Any], ranks: Ranks, tmp_path: Path
) -> None:
    backbone = build_backbone(ModelSection(**tiny["model"]), eps=1e-3, seed=0)
    with torch.no_grad():
        backbone.model.model.norm.weight[0] = math.nan
    backbone.model.save_pretrained(tmp_path / "broken")
    backbone.tokenizer.save_pretrained(tmp_path / "broken")
    tiny["model"] = {"path": str(tmp_path / "broken"), "dtype": "fp32"}
    tiny["diffusion"] = {}
    tiny["checkpoint"] = {"every": 1}
    with pytest.raises(FloatingPointError, match="not finite in 10 of the last 100 steps, 10 the last"):
        train(RunConfig.model_validate(tiny))
    folder = Path(tiny["run"]["output_dir"]) / "tiny"
    records = read_metrics(folder)
    assert [record["loss"] for record in records] == [None] * 9
    assert {record["skipped"] for record in records} == {"not finite"}
    assert not (folder / "checkpoints").exists()
    assert not (folder / "hf").exists()
