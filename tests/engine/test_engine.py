"""An engine on one rank: the weights that it returns, and the config that DeepSpeed gets."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from engine.small_engine import Planted, make_config, make_engine, take_step

from mdmscale.engine.checkpoint_weights import DeepSpeedCheckpoint
from mdmscale.engine.deepspeed_config import deepspeed_config
from mdmscale.engine.engine import Engine
from mdmscale.engine.optim import named_groups
from mdmscale.parallel.batch_layout import make_layout
from mdmscale.parallel.ranks import Ranks
from mdmscale.system.errors import UserError

SETTINGS = [(0, "fp32"), (2, "bf16"), (3, "bf16")]


def write_state(engine: Engine, folder: Path, stage: int, dtype: str) -> None:
    layout = {"world_size": 1, "zero_stage": stage, "tensor": 1, "dtype": dtype}
    state = {"engine": {**layout, "parameter_groups": named_groups(engine.module)}}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text(json.dumps({"tie_word_embeddings": True}))


@pytest.mark.parametrize(("stage", "dtype"), SETTINGS)
def test_a_saved_engine_goes_on_bit_for_bit(ranks: Ranks, tmp_path: Path, stage: int, dtype: str) -> None:
    config = make_config(stage, dtype)
    torch.manual_seed(0)
    engine, other = make_engine(config, ranks), make_engine(config, ranks)
    first = take_step(engine)
    engine.save(tmp_path)
    other.load(tmp_path)
    losses = [(take_step(engine), take_step(other)) for _ in range(3)]
    assert all(one == two for one, two in losses)
    assert losses[-1][0] < first
    weights, others = engine.gather_weights(ranks), other.gather_weights(ranks)
    assert all(torch.equal(weight, others[name]) for name, weight in weights.items())


@pytest.mark.parametrize("other_stage", [1, 3])
@pytest.mark.parametrize(("stage", "dtype"), SETTINGS)
def test_a_saved_engine_goes_on_at_another_stage(
    ranks: Ranks, tmp_path: Path, stage: int, dtype: str, other_stage: int
) -> None:
    engine = make_engine(make_config(stage, dtype), ranks)
    take_step(engine)
    engine.save(tmp_path)
    write_state(engine, tmp_path, stage, dtype)
    other = make_engine(make_config(other_stage, dtype), ranks)
    other.load_other_layout(tmp_path, ranks)
    weights, others = engine.gather_weights(ranks), other.gather_weights(ranks)
    assert all(torch.equal(weight, others[name]) for name, weight in weights.items())
    losses = [(take_step(engine), take_step(other)) for _ in range(3)]
    tolerance = 1e-6 if dtype == "fp32" else 1e-3
    assert all(one == pytest.approx(two, rel=tolerance) for one, two in losses)


@pytest.mark.parametrize(("stage", "dtype"), SETTINGS)
def test_gathered_weights_are_whole_and_in_host_memory(
    ranks: Ranks, tmp_path: Path, stage: int, dtype: str
) -> None:
    engine = make_engine(make_config(stage, dtype), ranks)
    take_step(engine)
    engine.save(tmp_path)
    write_state(engine, tmp_path, stage, dtype)
    saved = DeepSpeedCheckpoint(tmp_path)
    weights = engine.gather_weights(ranks)
    assert weights.keys() == saved.tensors().keys()
    assert all(torch.equal(weight, saved.read(name)) for name, weight in weights.items())
    before = {name: weight.clone() for name, weight in weights.items()}
    take_step(engine)
    assert all(torch.equal(weight, before[name]) for name, weight in weights.items()), "a copy"


@pytest.mark.parametrize(("stage", "dtype"), SETTINGS)
def test_a_resume_runs_no_code_of_a_checkpoint(ranks: Ranks, tmp_path: Path, stage: int, dtype: str) -> None:
    """In every file that DeepSpeed itself loads, beside what the file has to hold."""
    engine = make_engine(make_config(stage, dtype), ranks)
    take_step(engine)
    engine.save(tmp_path)
    files = list((tmp_path / "engine").glob("*.pt"))
    assert len(files) == (1 if stage == 0 else 2)
    for file in files:
        whole = file.read_bytes()
        content = torch.load(file, weights_only=False)
        torch.save({**content, "more": Planted(tmp_path / "ran")}, file)
        with pytest.raises(UserError, match=rf"{file.name}: cannot be read: .*") as refused:
            engine.load(tmp_path)
        assert len(refused.value.problems) == 1
        assert not (tmp_path / "ran").exists()
        file.write_bytes(whole)
    engine.load(tmp_path)


def test_another_models_weights_are_refused(ranks: Ranks, tmp_path: Path) -> None:
    make_engine(make_config(0, "fp32"), ranks).save(tmp_path)
    config = make_config(0, "fp32")
    wider = config.model_copy(update={"model": config.model.model_copy(update={"intermediate_size": 48})})
    with pytest.raises(UserError, match="do not fit this config's model"):
        make_engine(wider, ranks).load(tmp_path)


def test_modes_reach_the_model(ranks: Ranks) -> None:
    engine = make_engine(make_config(0, "fp32"), ranks)
    assert engine.training and engine.module.training
    engine.eval()
    assert not engine.training and not engine.module.backbone.training  # type: ignore[union-attr]
    engine.train()
    assert engine.training and engine.module.backbone.training  # type: ignore[union-attr]


def options_of(tmp_path: Path | None, **parallel: Any) -> dict[str, Any]:
    config = make_config(3, "bf16", **parallel)
    return deepspeed_config(config, make_layout(config, 1), False, tmp_path, largest_shard=1000)[
        "zero_optimization"
    ]


def test_disks_are_in_the_one_configuration(tmp_path: Path) -> None:
    disk: dict[str, Any] = {"nvme_path": str(tmp_path), "offload_optimizer": "nvme"}
    optimizer = options_of(tmp_path, **disk)
    assert optimizer["offload_optimizer"] == {"device": "nvme", "nvme_path": str(tmp_path), "buffer_count": 4}
    assert "offload_param" not in optimizer
    both = options_of(tmp_path, **disk, offload_parameters="nvme")
    assert both["offload_param"]["buffer_size"] == both["sub_group_size"] + 1000
    assert both["stage3_prefetch_bucket_size"] == 0


def test_host_memory_needs_no_folder() -> None:
    options = options_of(None, offload_optimizer="cpu")
    assert options["offload_optimizer"] == {"device": "cpu", "pin_memory": False}
    assert "sub_group_size" not in options
