"""The current layout of a run folder, and the recognised kinds of paths."""

from pathlib import Path

import pytest

from mdmscale.system.errors import UserError
from mdmscale.system.run_folder import RunFolder, kind_of, step_of


def test_the_layout_is_the_one_of_runs_that_are_on_disk() -> None:
    run = RunFolder(Path("runs/a"))
    parts = {
        run.config: "config.yaml",
        run.metrics: "metrics.jsonl",
        run.tensorboard: "tensorboard",
        run.figures: "figures",
        run.data: "data",
        run.export: "hf",
        run.adapter: "adapter",
        run.stop: "stop",
        run.checkpoint(100): "checkpoints/step-00000100",
        run.heartbeat(3): "logs/heartbeats/3.jsonl",
        run.library_log(3): "logs/deepspeed-3.log",
        run.stall: "logs/stall.json",
        run.stacks(3): "logs/stacks-3.txt",
    }
    assert [str(path) for path in parts] == [f"runs/a/{name}" for name in parts.values()]


def test_checkpoints_come_in_the_order_of_their_steps(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert run.published_checkpoints() == []
    for step in (1000, 99, 100):
        run.checkpoint(step).mkdir(parents=True)
    (run.checkpoints / ".unfinished-step-00000101").mkdir()
    (run.checkpoints / "step-list.txt").touch()
    assert [step_of(path) for path in run.published_checkpoints()] == [99, 100, 1000]


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("config.json", "model"),
        ("state.json", "checkpoint"),
        ("engine/mp_rank_00_model_states.pt", "checkpoint"),
        ("config.yaml", "run"),
        ("checkpoints/step-00000001/state.json", "run"),
        ("hf/config.json", "run"),
    ],
)
def test_a_folder_is_told_by_what_it_holds(tmp_path: Path, file: str, kind: str) -> None:
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).touch()
    assert kind_of(tmp_path) == kind


def test_other_paths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere: no such folder$"):
        kind_of(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"^owner/name: no such folder; if it is a hub id, run `hf download "):
        kind_of(Path("owner/name"))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file: is a file; give the folder that holds it"):
        kind_of(tmp_path / "file")
    (tmp_path / "run" / "checkpoints" / "step-00000004").mkdir(parents=True)
    with pytest.raises(UserError, match=r"holds checkpoints; give .*/run, or one of them: .*step-00000004$"):
        kind_of(tmp_path / "run" / "checkpoints")
    with pytest.raises(UserError, match=r"neither a Hugging Face model folder .* nor a checkpoint"):
        kind_of(tmp_path)
