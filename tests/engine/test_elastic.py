"""Runs that resume with other ranks and ZeRO stages, and reading a model from a checkpoint alone."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_values, train_all
from engine.small_engine import Planted
from transformers import AutoModelForCausalLM

from mdmscale.engine.averaging import AVERAGE
from mdmscale.engine.checkpoint_weights import DeepSpeedCheckpoint
from mdmscale.engine.private import MASTER, MOMENTS
from mdmscale.system.errors import UserError
from mdmscale.training.metrics import read_metrics

pytestmark = pytest.mark.distributed

SAVED, STEPS = 4, 10
DECAY = 0.5  # of the average; its warm-up reaches it after 8 updates
STAGES = range(4)
SOURCES = [("fp32", stage) for stage in STAGES] + [("bf16", 0), ("bf16", 1), ("bf16", 3)]
EVALUATED = [("fp32", 2), ("bf16", 1), ("bf16", 3)]  # on 2 ranks
EVERY_STEP = [("fp32", 2), ("bf16", 1), ("bf16", 3)]  # saved at each, on 2 ranks
# (dtype, ranks and stage that saved, ranks and stage that go on)
SAME_STAGE = [("fp32", 1, stage, 2, stage) for stage in STAGES] + [
    ("fp32", 2, stage, 1, stage) for stage in STAGES
]
OTHER_STAGE = [
    ("fp32", 1, 0, 2, 2),
    ("fp32", 1, 1, 2, 3),
    ("fp32", 2, 3, 1, 0),
    ("fp32", 2, 2, 2, 0),
    ("bf16", 1, 0, 2, 1),
    ("bf16", 2, 1, 1, 0),
    ("bf16", 2, 3, 1, 1),
]


def source_name(dtype: str, ranks: int, stage: int) -> str:
    return f"{dtype}-{ranks}-{stage}"


def target_name(dtype: str, ranks: int, stage: int, new_ranks: int, new_stage: int) -> str:
    return f"{source_name(dtype, ranks, stage)}-to-{new_ranks}-{new_stage}"


def run_values(corpus: Path, folder: Path, name: str, dtype: str, stage: int) -> dict[str, Any]:
    """A run with two weight-decay groups, an odd width that two ranks cannot divide, and a refitted p(t)."""
    values = tiny_values(corpus, folder)
    values["run"]["name"] = name
    values["model"] |= {"dtype": dtype, "intermediate_size": 33}
    values["diffusion"]["p_pots"]["refit_every"] = 6
    values["train"] |= {"steps": STEPS, "micro_batch_size": 4, "ema_decay": DECAY}
    values["optimizer"]["weight_decay"] = 0.1
    values["parallel"] = {"zero_stage": stage}
    values["checkpoint"] = {"every": SAVED, "keep": 0}
    return values


@pytest.fixture(scope="module")
def runs(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs that save, and runs that resume them: jobs on 1, 2 and 1 ranks, each needing the one before."""
    folder = tmp_path_factory.mktemp("runs")

    def source(dtype: str, ranks: int, stage: int) -> dict[str, Any]:
        values = run_values(corpus, folder, source_name(dtype, ranks, stage), dtype, stage)
        if ranks == 2 and (dtype, stage) in EVERY_STEP:
            values["checkpoint"]["every"] = 1
        return values

    def evaluated(dtype: str, stage: int) -> dict[str, Any]:
        values = run_values(corpus, folder, f"evaluated-{dtype}-{stage}", dtype, stage)
        return values | {"eval": {"every": 3, "samples": 4, "num_t": 2}}

    def target(dtype: str, ranks: int, stage: int, new_ranks: int, new_stage: int) -> dict[str, Any]:
        values = run_values(
            corpus, folder, target_name(dtype, ranks, stage, new_ranks, new_stage), dtype, new_stage
        )
        start = folder / source_name(dtype, ranks, stage) / "checkpoints" / f"step-{SAVED:08d}"
        return values | {"checkpoint": values["checkpoint"] | {"resume": str(start)}}

    targets = SAME_STAGE + OTHER_STAGE
    jobs = [
        (1, [source(dtype, 1, stage) for dtype, stage in SOURCES]),
        (
            2,
            [source(dtype, 2, stage) for dtype, stage in SOURCES]
            + [target(*each) for each in targets if each[3] == 2]
            + [evaluated(*each) for each in EVALUATED],
        ),
        (1, [target(*each) for each in targets if each[3] == 1]),
    ]
    for ranks, batch in jobs:
        train_all(ranks, batch)
    return folder


def series(run: Path, key: str) -> np.ndarray:
    return np.array([record[key] for record in read_metrics(run) if record["step"] > SAVED])


def last(run: Path) -> DeepSpeedCheckpoint:
    return DeepSpeedCheckpoint(run / "checkpoints" / f"step-{STEPS:08d}")


@pytest.mark.parametrize("change", SAME_STAGE + OTHER_STAGE, ids=lambda each: target_name(*each))
def test_losses_are_those_of_the_uninterrupted_run(
    runs: Path, change: tuple[str, int, int, int, int]
) -> None:
    dtype = change[0]
    whole, resumed = runs / source_name(*change[:3]), runs / target_name(*change)
    assert len(series(resumed, "loss")) == STEPS - SAVED == 6
    tolerance = 1e-5 if dtype == "fp32" else 2e-2
    np.testing.assert_allclose(series(resumed, "loss"), series(whole, "loss"), rtol=tolerance)
    for key in ("masked_tokens", "tokens", "consumed_samples", "lr"):
        np.testing.assert_array_equal(series(resumed, key), series(whole, key))


@pytest.mark.parametrize("change", SAME_STAGE + OTHER_STAGE, ids=lambda each: target_name(*each))
def test_step_counts_moments_and_group_options_survive(
    runs: Path, change: tuple[str, int, int, int, int]
) -> None:
    whole, resumed = last(runs / source_name(*change[:3])), last(runs / target_name(*change))
    assert resumed.optimizer_step == whole.optimizer_step
    (files,) = resumed._parts
    groups = files._optimizers[0] if change[4] else files._models[0]["optimizer"]
    for name in ("base_optimizer_state", "optimizer_state_dict"):
        groups = groups.get(name, groups)
    assert [group["weight_decay"] for group in groups["param_groups"]] == [0.1, 0.0]
    if change[0] == "fp32":
        assert resumed.average_updates == whole.average_updates == STEPS
        for kind in (MASTER, *MOMENTS, AVERAGE):
            for name in whole.trained:
                torch.testing.assert_close(
                    resumed.optimizer_value(name, kind),
                    whole.optimizer_value(name, kind),
                    rtol=1e-3,
                    atol=1e-6,
                )


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(("dtype", "stage"), SOURCES)
def test_a_checkpoint_alone_gives_the_exported_weights(
    runs: Path, dtype: str, stage: int, ranks: int
) -> None:
    run = runs / source_name(dtype, ranks, stage)
    checkpoint = last(run)
    averaged = DeepSpeedCheckpoint(checkpoint.folder, averaged=True)
    for folder, stored in (("hf", checkpoint), ("hf_ema", averaged)):
        exported = dict(AutoModelForCausalLM.from_pretrained(run / folder).named_parameters())
        infos = stored.tensors()
        assert set(infos) == set(exported)
        for name, info in infos.items():
            weight = stored.read(name)
            assert (info.shape, info.dtype) == (tuple(weight.shape), weight.dtype)
            assert torch.equal(weight, exported[name]), name
    embedding = "model.embed_tokens.weight"
    assert not torch.equal(averaged.read(embedding), checkpoint.read(embedding))
    config = json.loads((checkpoint.model_folder / "config.json").read_text())
    assert config["mdm"] == json.loads((run / "hf" / "config.json").read_text())["mdm"]
    assert (checkpoint.model_folder / "tokenizer_config.json").is_file()


@pytest.mark.parametrize(("dtype", "stage"), EVERY_STEP)
def test_the_average_is_that_of_every_steps_masters(runs: Path, dtype: str, stage: int) -> None:
    """test_averaging.py checks its beginning, of which no checkpoint exists."""
    folder = runs / source_name(dtype, 2, stage) / "checkpoints"
    steps = [DeepSpeedCheckpoint(folder / f"step-{step:08d}") for step in range(1, STEPS + 1)]
    for name in steps[0].trained:
        average = steps[0].optimizer_value(name, AVERAGE).double()
        for number, step in enumerate(steps[1:], start=1):
            kept = min(DECAY, (1 + number) / (10 + number))
            average = kept * average + (1 - kept) * step.optimizer_value(name, MASTER).double()
            assert step.average_updates == number + 1
            found = step.optimizer_value(name, AVERAGE).double()
            torch.testing.assert_close(found, average, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("dtype", "stage"), EVALUATED)
def test_evaluations_of_the_average_leave_training_as_it_is(runs: Path, dtype: str, stage: int) -> None:
    """A run that evaluates weights and average is the same bit for bit as one that does not."""
    evaluated, plain = runs / f"evaluated-{dtype}-{stage}", runs / source_name(dtype, 2, stage)
    for key in ("loss", "grad_norm"):
        np.testing.assert_array_equal(series(evaluated, key), series(plain, key))
    mine, theirs = last(evaluated), last(plain)
    for name in mine.trained:
        for kind in (MASTER, *MOMENTS, AVERAGE):
            assert torch.equal(mine.optimizer_value(name, kind), theirs.optimizer_value(name, kind)), name
    found = [record for record in read_metrics(evaluated) if "eval_loss_ema" in record]
    assert [record["step"] for record in found] == [3, 6, 9, STEPS]
    assert all(record["eval_loss_ema"] != record["eval_loss"] for record in found)


def test_damaged_files_are_named(runs: Path, tmp_path: Path) -> None:
    source = runs / source_name("fp32", 2, 1) / "checkpoints" / f"step-{STEPS:08d}"
    copied = tmp_path / source.name
    shutil.copytree(source, copied)
    model = copied / "engine" / "mp_rank_00_model_states.pt"
    shard = copied / "engine" / "zero_pp_rank_1_mp_rank_00_optim_states.pt"
    shard.unlink()
    with pytest.raises(UserError, match="optimizer states of rank 1 are missing"):
        DeepSpeedCheckpoint(copied).optimizer_value("backbone.model.norm.weight", MASTER)
    model.write_bytes(model.read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"mp_rank_00_model_states\.pt: cannot be read"):
        DeepSpeedCheckpoint(copied)
    model.unlink()
    with pytest.raises(UserError, match=r"mp_rank_00_model_states\.pt: is missing"):
        DeepSpeedCheckpoint(copied)
    (copied / "state.json").write_text("{")
    with pytest.raises(UserError, match=r"state\.json: is damaged"):
        DeepSpeedCheckpoint(copied)


def test_pickled_code_in_a_checkpoint_is_not_run(runs: Path, tmp_path: Path) -> None:
    source = runs / source_name("fp32", 1, 0) / "checkpoints" / f"step-{STEPS:08d}"
    copied = tmp_path / source.name
    shutil.copytree(source, copied)
    torch.save({"module": Planted(tmp_path / "ran")}, copied / "engine" / "mp_rank_00_model_states.pt")
    with pytest.raises(UserError, match="cannot be read"):
        DeepSpeedCheckpoint(copied)
    assert not (tmp_path / "ran").exists()
