"""Which checkpoints stay: the newest, every Nth and the best, and nothing of the user's is touched."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from training.test_state import STATE

from mdmscale.config.run import RunConfig
from mdmscale.config.training import CheckpointSection
from mdmscale.parallel.ranks import Ranks
from mdmscale.system.run_folder import RunFolder, step_of
from mdmscale.training.metrics import read_metrics
from mdmscale.training.retention import best_checkpoint, retired
from mdmscale.training.trainer import train


def checkpoints_with(folder: Path, scores: dict[int, dict[str, float]]) -> list[Path]:
    """Checkpoints of some steps that hold nothing but their state."""
    run = RunFolder(folder)
    for step, metrics in scores.items():
        run.checkpoint(step).mkdir(parents=True)
        replace(STATE, step=step, scores=metrics).write(run.checkpoint(step))
    return run.published_checkpoints()


@pytest.mark.parametrize(
    ("options", "gone"),
    [
        ({"keep": 0}, []),
        ({"keep": 1}, [10, 20, 30, 40]),
        ({"keep": 1, "keep_every": 20}, [10, 30]),
        ({"keep": 1, "keep_best": "loss"}, [10, 30, 40]),
        ({"keep": 2, "keep_best": "gsm8k"}, [10, 20]),
        ({"keep": 1, "keep_every": 30, "keep_best": "reasoning-gym:chain_sum"}, [20, 40]),
        ({"keep": 9}, []),
    ],
)
def test_the_newest_every_nth_and_the_best_stay(
    tmp_path: Path, options: dict[str, Any], gone: list[int]
) -> None:
    checkpoints = checkpoints_with(
        tmp_path,
        {
            10: {"eval_loss": 3.0, "task_reasoning-gym_chain_sum_accuracy": 0.5},
            20: {"eval_loss": 2.0, "task_gsm8k_accuracy": 0.25},
            30: {"eval_loss": 2.5, "task_gsm8k_accuracy": 0.5},
            40: {"task_gsm8k_accuracy": 0.125},
            50: {},
        },
    )
    assert [step_of(each) for each in retired(checkpoints, CheckpointSection(**options))] == gone


def test_of_equal_scores_the_newest_is_best_and_without_scores_none_is(tmp_path: Path) -> None:
    checkpoints = checkpoints_with(tmp_path, {1: {"eval_loss": 2.0}, 2: {"eval_loss": 2.0}, 3: {}})
    assert best_checkpoint(checkpoints, "loss") == checkpoints[1]
    assert best_checkpoint(checkpoints, "gsm8k") is None
    (checkpoints[1] / "state.json").write_text("{")
    assert best_checkpoint(checkpoints, "loss") == checkpoints[0]


def test_a_run_keeps_its_best_checkpoint_over_a_resume(
    tiny: dict[str, Any], ranks: Ranks, capfd: pytest.CaptureFixture[str]
) -> None:
    """The learning rate is so high in its second half that the loss is best before."""
    tiny["eval"] = {"every": 2, "samples": 4, "num_t": 2}
    tiny["checkpoint"] = {"every": 2, "keep": 1, "keep_best": "loss"}
    tiny["diffusion"] = {}
    first = {**tiny, "train": {**tiny["train"], "steps": 6}}
    folder = train(RunConfig.model_validate(first)).folder
    second = {**tiny, "train": {**tiny["train"], "steps": 10}, "optimizer": {"lr": 1.0}}
    train(RunConfig.model_validate(second))
    losses = {each["step"]: each["eval_loss"] for each in read_metrics(folder) if "eval_loss" in each}
    best = min(losses, key=lambda step: losses[step])
    assert best <= 6 < 10
    assert [step_of(path) for path in RunFolder(folder).published_checkpoints()] == [best, 10]
    assert f"  best        {RunFolder(folder).checkpoint(best)}, by loss" in capfd.readouterr().out


def test_what_is_not_named_like_a_checkpoint_is_the_users(tiny: dict[str, Any], ranks: Ranks) -> None:
    """Such folders are neither resumed from nor removed, and count neither as newest nor as checkpoints."""
    tiny["train"]["steps"], tiny["optimizer"] = 2, {"lr": 1e-3}
    tiny["diffusion"] = {}
    tiny["checkpoint"] = {"every": 1, "keep": 1, "resume": "none"}
    run = RunFolder(Path(tiny["run"]["output_dir"]) / tiny["run"]["name"])
    names = [
        "step-best",
        "step-notes",
        "step-1",
        "step-000000020",
        "step-00000001.old",
        ".unfinished-step-best",
    ]
    for name in names:
        (run.checkpoints / name).mkdir(parents=True)
        (run.checkpoints / name / "notes.txt").touch()
    (run.checkpoints / ".replaced-step-00000001").mkdir()  # a removal that was killed
    train(RunConfig.model_validate(tiny))
    tiny["train"]["steps"] = 4
    tiny["checkpoint"]["resume"] = "auto"
    train(RunConfig.model_validate(tiny))
    assert sorted(each.name for each in run.checkpoints.iterdir()) == sorted([*names, "step-00000004"])
    assert all((run.checkpoints / name / "notes.txt").exists() for name in names)


def test_a_link_to_a_checkpoint_is_removed_and_what_it_points_to_stays(
    tiny: dict[str, Any], ranks: Ranks, tmp_path: Path
) -> None:
    tiny["train"]["steps"], tiny["optimizer"] = 1, {"lr": 1e-3}
    tiny["diffusion"] = {}
    tiny["checkpoint"] = {"keep": 1}
    run = RunFolder(train(RunConfig.model_validate(tiny)).folder)
    run.checkpoint(1).rename(tmp_path / "elsewhere")
    run.checkpoint(1).symlink_to(tmp_path / "elsewhere")
    tiny["train"]["steps"] = 2
    train(RunConfig.model_validate(tiny))
    assert [step_of(each) for each in run.published_checkpoints()] == [2]
    assert (tmp_path / "elsewhere" / "state.json").is_file()
