"""Checkpoints in one process: which are kept, which is resumed, and which options come from the config."""

from pathlib import Path
from typing import Any

import pytest

from mdmscale.config.run import RunConfig
from mdmscale.parallel.ranks import Ranks
from mdmscale.system.errors import UserError
from mdmscale.system.run_folder import RunFolder, step_of
from mdmscale.training.checkpoint import find_resume
from mdmscale.training.metrics import read_metrics
from mdmscale.training.setup import set_up
from mdmscale.training.state import TrainingState
from mdmscale.training.trainer import train


def config_of(values: dict[str, Any], **sections: dict[str, Any]) -> RunConfig:
    return RunConfig.model_validate(
        {**values, **{name: {**values.get(name, {}), **keys} for name, keys in sections.items()}}
    )


@pytest.fixture
def trained(tiny: dict[str, Any], ranks: Ranks) -> tuple[dict[str, Any], Path]:
    """A run of 12 steps with checkpoints of steps 4, 8 and 12."""
    tiny["train"]["steps"] = 12
    tiny["checkpoint"] = {"every": 4, "keep": 0}
    return tiny, train(RunConfig.model_validate(tiny)).folder


def steps_of(folder: Path) -> list[int]:
    return [step_of(path) for path in RunFolder(folder).published_checkpoints()]


def test_a_damaged_newer_checkpoint_does_not_push_out_whole_ones(
    trained: tuple[dict[str, Any], Path],
) -> None:
    """With keep: 1 the checkpoint of step 10 stays, although the damaged one of step 12 sorts after it."""
    values, folder = trained
    next((folder / "checkpoints" / "step-00000012" / "engine").glob("*model_states.pt")).unlink()
    train(config_of(values, train={"steps": 10}, checkpoint={"keep": 1}))
    assert steps_of(folder) == [10]


def test_no_whole_checkpoint_stops_instead_of_starting_over(trained: tuple[dict[str, Any], Path]) -> None:
    values, folder = trained
    for checkpoint in RunFolder(folder).published_checkpoints():
        (checkpoint / "state.json").unlink()
    with pytest.raises(UserError, match="every checkpoint is damaged"):
        train(config_of(values, train={"steps": 20}))
    assert len(read_metrics(folder)) == 12


def test_a_path_is_where_a_run_starts_and_then_it_has_its_own(
    trained: tuple[dict[str, Any], Path], ranks: Ranks
) -> None:
    values, folder = trained
    start = str(folder / "checkpoints" / "step-00000008")
    config = config_of(values, run={"name": "branch"}, checkpoint={"resume": start, "every": 2})
    branch = train(config).folder
    assert [record["step"] for record in read_metrics(branch)] == [9, 10, 11, 12]
    assert [record["loss"] for record in read_metrics(branch)] == [
        record["loss"] for record in read_metrics(folder)[8:]
    ]
    path, _ = find_resume(start, branch / "checkpoints", ranks)
    assert path == branch / "checkpoints" / "step-00000012"


def test_a_start_gives_an_exported_model_its_name_back(trained: tuple[dict[str, Any], Path]) -> None:
    """A kill between the two renames of a file system that cannot exchange names has taken it."""
    values, folder = trained
    (folder / "hf").rename(folder / ".replaced-hf")
    with pytest.raises(UserError, match="was trained with"):
        train(config_of(values, run={"seed": 4}))
    assert (folder / "hf" / "config.json").is_file() and not (folder / ".replaced-hf").exists()


def test_a_state_of_another_version_is_named(trained: tuple[dict[str, Any], Path]) -> None:
    state = trained[1] / "checkpoints" / "step-00000012" / "state.json"
    state.write_text('{"step": 3}')
    with pytest.raises(UserError, match=r"state\.json: written by another version"):
        TrainingState.read(state.parent)


def test_p_pots_that_is_turned_on_later_probes_at_once_and_off_leaves_t_uniform(
    trained: tuple[dict[str, Any], Path], ranks: Ranks
) -> None:
    values, folder = trained
    off = set_up(config_of(values, diffusion={"t_sampler": "uniform"}), ranks)
    assert off.p_pots.t_sampler.density.density.tolist() == [1.0]

    plain = config_of(values, run={"name": "plain"}, diffusion={"t_sampler": "uniform"})
    train(plain)
    more = {"train": {"steps": 14}, "run": {"name": "plain"}}
    train(config_of(values, **more))
    figures = [path.name for path in (folder.parent / "plain" / "figures").glob("p_pots*")]
    assert figures == ["p_pots_step_00000012.png"]


def test_optimizer_options_are_the_configs_not_the_checkpoints(
    trained: tuple[dict[str, Any], Path], ranks: Ranks
) -> None:
    changed = {"weight_decay": 0.01, "betas": [0.8, 0.9], "eps": 1e-6}
    run = set_up(config_of(trained[0], optimizer=changed), ranks)
    groups = run.engine.deepspeed.optimizer.param_groups
    assert [group["weight_decay"] for group in groups] == [0.01, 0.0]
    assert {(group["betas"], group["eps"]) for group in groups} == {((0.8, 0.9), 1e-6)}


def test_weights_that_do_not_fit_are_a_mistake_with_a_name(trained: tuple[dict[str, Any], Path]) -> None:
    message = r"model\.hidden_size = 64, but checkpoint .*step-00000012 was trained with 32"
    with pytest.raises(UserError, match=message):
        train(config_of(trained[0], model={"hidden_size": 64}, train={"steps": 20}))
