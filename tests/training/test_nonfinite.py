"""Values that are not finite are never saved nor resumed from, and a run that they end goes back further."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import renew_manifest
from conftest import WORKERS, kept_environment, run_ranks, tiny_values

from mdmscale.config.run import RunConfig
from mdmscale.engine.manifest import MANIFEST_FILE, write_manifest
from mdmscale.parallel.ranks import Ranks
from mdmscale.system.errors import UserError
from mdmscale.system.run_folder import RunFolder, step_of
from mdmscale.system.sums import file_names, sums_of
from mdmscale.training.checkpoint import find_resume
from mdmscale.training.metrics import read_metrics
from mdmscale.training.nonfinite import Ends, read_ends
from mdmscale.training.trainer import train

TOO_HIGH = 1e39  # a learning rate that makes every weight infinite, after a finite loss


def values_of(tiny: dict[str, Any], steps: int, lr: float = 1e-3, **checkpoint: Any) -> RunConfig:
    values = {**tiny, "train": {**tiny["train"], "steps": steps}, "diffusion": {}}
    values["optimizer"] = {"lr": lr, "schedule": "constant", "weight_decay": 0.0}
    return RunConfig.model_validate({**values, "checkpoint": {"every": 2, "keep": 0, **checkpoint}})


def steps_of(run: RunFolder) -> list[int]:
    return [step_of(each) for each in run.published_checkpoints()]


def test_weights_that_are_not_finite_are_not_saved_and_push_nothing_out(
    tiny: dict[str, Any], ranks: Ranks
) -> None:
    run = RunFolder(train(values_of(tiny, 2)).folder)
    exported = (run.export / "model.safetensors").read_bytes()
    for _ in range(2):
        with pytest.raises(
            FloatingPointError, match=r"not finite after step 3, so they are not saved; resume"
        ):
            train(values_of(tiny, 3, TOO_HIGH, keep=1, every=1))
        assert [each.name for each in run.checkpoints.iterdir()] == ["step-00000002"]
        assert (run.export / "model.safetensors").read_bytes() == exported
    train(values_of(tiny, 3))
    assert steps_of(run) == [2, 3]


def test_a_run_that_does_not_pass_a_step_goes_back_one_further_each_time_and_says_so(
    tiny: dict[str, Any], ranks: Ranks, capfd: pytest.CaptureFixture[str]
) -> None:
    run = RunFolder(train(values_of(tiny, 6)).folder)

    def start(steps: int, lr: float) -> str:
        """The start's warnings, if any."""
        capfd.readouterr()
        try:
            train(values_of(tiny, steps, lr))
        except FloatingPointError:
            assert lr == TOO_HIGH
        lines = capfd.readouterr().out.splitlines()
        return "\n".join(line for line in lines if line.startswith("warning: "))

    def write_ends(step: int, times: int) -> None:
        run.ends.write_text(json.dumps({"step": step, "times": times}))

    def warning(times: int, start: str) -> str:
        ended = f"the run has ended {times} times by values that are not finite, at step 8 or before"
        return f"warning: {ended}; it {start}"

    assert start(8, TOO_HIGH) == "" and read_ends(run) == Ends(8, 1), "the save ends it"
    assert start(8, TOO_HIGH) == "" and read_ends(run) == Ends(8, 2)
    oldest, middle, newest = run.published_checkpoints()
    assert start(8, TOO_HIGH) == warning(2, f"goes back from {newest} to {middle}")
    assert [each["step"] for each in read_metrics(run.path)][:4] == [1, 2, 3, 4]
    assert read_ends(run) == Ends(8, 3)
    assert start(7, TOO_HIGH) == warning(3, f"goes back from {newest} to {oldest}")
    assert read_ends(run) == Ends(8, 4), "an earlier end is no progress"
    write_ends(6, 9)
    assert f"goes back from {newest} to {oldest}" in start(8, 1e-3)
    assert steps_of(run) == [2, 4, 6, 8] and not run.ends.exists(), "it has passed that step"
    for step in (2, 4, 6):
        shutil.rmtree(run.checkpoint(step))
    write_ends(8, 2)
    continues = f"continues from {run.checkpoint(8)}, as there is no older checkpoint; lower optimizer.lr"
    assert start(10, 1e-3) == warning(2, continues)
    run.ends.write_text("{")
    assert start(10, 1e-3) == ""


def spoil(checkpoint: Path) -> None:
    """Put NaN into the weights, as a version that did not look would have saved them."""
    (file,) = (checkpoint / "engine").glob("*model_states.pt")
    content = torch.load(file, weights_only=False)
    next(iter(content["module"].values())).view(-1)[0] = float("nan")
    torch.save(content, file)


def unload(checkpoint: Path) -> None:
    """Replace a file by what DeepSpeed cannot load."""
    (file,) = (checkpoint / "engine").glob("*model_states.pt")
    file.write_bytes(b"nothing that torch can load")


def with_new_sums(change: Callable[[Path], None], checkpoint: Path) -> None:
    change(checkpoint)
    renew_manifest(checkpoint)


def drop(name: str | None, checkpoint: Path) -> None:
    """Take one file's name, or all names, from the manifest. The files stay."""
    manifest = json.loads((checkpoint / MANIFEST_FILE).read_text())
    files = {} if name is None else {key: each for key, each in manifest["files"].items() if name not in key}
    (checkpoint / MANIFEST_FILE).write_text(json.dumps({"files": files}))


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "values": (lambda path: with_new_sums(spoil, path), "_model_states.pt holds values that are not finite"),
    "loading": (lambda path: with_new_sums(unload, path), "_model_states.pt: cannot be read"),
    "empty": (lambda path: drop(None, path), "manifest.json is damaged: it does not name state.json"),
    "rank": (
        lambda path: drop("mp_rank_00", path),
        "manifest.json is damaged: it does not name engine/mp_rank_00_model_states.pt",
    ),
}


@pytest.fixture(scope="module")
def two_checkpoints(corpus: Path, tmp_path_factory: pytest.TempPathFactory, process_group: None) -> Path:
    folder = tmp_path_factory.mktemp("run")
    values = {**tiny_values(corpus, folder), "parallel": {"zero_stage": 0}}
    with kept_environment():
        return train(values_of(values, 4)).folder


@pytest.mark.parametrize("fault", FAULTS)
def test_a_checkpoint_that_cannot_go_on_is_passed_over(
    two_checkpoints: Path, tmp_path: Path, ranks: Ranks, fault: str
) -> None:
    run = RunFolder(tmp_path / "tiny")
    shutil.copytree(two_checkpoints, run.path)
    change, message = FAULTS[fault]
    change(run.checkpoint(4))
    path, warnings = find_resume("auto", run.checkpoints, ranks)
    assert path == run.checkpoint(2)
    (warning,) = warnings
    assert warning.startswith(f"checkpoint {run.checkpoint(4)} is skipped: ") and message in warning
    with pytest.raises(UserError, match=r"checkpoint\.resume = "):
        find_resume(str(run.checkpoint(4)), tmp_path / "another" / "checkpoints", ranks)


def test_a_checkpoint_that_lacks_a_ranks_file_is_not_published(two_checkpoints: Path, tmp_path: Path) -> None:
    """As where each node writes to a disk of its own."""
    shutil.copytree(two_checkpoints / "checkpoints" / "step-00000004", tmp_path / "step")
    names = [name for name in file_names(tmp_path / "step") if "mp_rank" not in name]
    with pytest.raises(UserError, match=r"lacks engine/mp_rank_00_model_states\.pt .* all nodes share"):
        write_manifest(tmp_path / "step", sums_of(tmp_path / "step", names))


@pytest.mark.distributed
def test_all_ranks_act_on_what_one_of_them_finds(tiny: dict[str, Any], tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps(values_of(tiny, 4).model_dump(mode="json")))  # JSON is YAML
    output = run_ranks(2, WORKERS / "one_bad_rank.py", str(config))
    (one, two) = json.loads(output.splitlines()[-1])
    assert one == two
    assert one[0].startswith("the weights or the optimizer's state are not finite after step 4")
    assert one[1] == "step-00000002"
    assert steps_of(RunFolder(Path(tiny["run"]["output_dir"]) / "tiny")) == [2, 4]
