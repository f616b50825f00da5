"""A disk that is full: the run ends in one line, older checkpoints stay, and the same command goes on."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, WORKERS, run_ranks, start_ranks

from mdmscale.config.run import RunConfig
from mdmscale.parallel.ranks import Ranks
from mdmscale.system import disk
from mdmscale.system.errors import UserError
from mdmscale.training.metrics import read_metrics
from mdmscale.training.trainer import train


@pytest.mark.distributed
@pytest.mark.parametrize(("rank", "file"), [(0, "mp_rank_00_model_states"), (1, "bf16_zero_pp_rank_1_")])
def test_a_file_that_cannot_be_written_ends_all_ranks_in_one_line(
    tiny: dict[str, Any], tmp_path: Path, rank: int, file: str
) -> None:
    tiny["checkpoint"] = {"every": 5, "keep": 1}
    tiny["model"]["dtype"] = "bf16"
    tiny["parallel"] = {"zero_stage": 1}
    config, checkpoints = tmp_path / "config.json", tmp_path / "runs" / "tiny" / "checkpoints"
    config.write_text(json.dumps(tiny))
    job = start_ranks(2, WORKERS / "train_on_a_full_disk.py", str(config), "10", str(rank))
    try:
        status = job.wait(120)
    finally:
        job.kill()
    assert status == 2, job.stdout
    (error,) = (line for line in job.stdout.splitlines() if line.startswith("error: "))
    assert f"step-00000010/engine/{file}" in error and "File too large (the disk at " in error, error
    assert "raise the limit on the size of files" in error and "Traceback" not in job.stdout
    assert [path.name for path in checkpoints.iterdir()] == ["step-00000005"]
    assert len(read_metrics(checkpoints.parent)) == 10
    output = run_ranks(2, ROOT / "launchers" / "train.py", "--config", str(config))
    assert "continuing from" in output and "finished at step 20" in output


def test_room_is_checked_before_anything_is_written_and_after_leftovers_are_removed(
    tiny: dict[str, Any], ranks: Ranks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny["checkpoint"] = {"every": 10, "keep": 1}
    tiny["train"]["steps"] = 10
    checkpoints = train(RunConfig.model_validate(tiny)).folder / "checkpoints"
    leftover = checkpoints / ".unfinished-step-00000015"
    leftover.mkdir()
    monkeypatch.setattr(disk, "SPARE_BYTES", 10**18)  # more than any disk has
    tiny["train"]["steps"] = 20
    with pytest.raises(
        UserError, match=r"step-00000020: needs 0\.00 GB and .* to spare, but the disk at .*; remove what"
    ):
        train(RunConfig.model_validate(tiny))
    assert [path.name for path in checkpoints.iterdir()] == ["step-00000010"]
    monkeypatch.undo()
    train(RunConfig.model_validate(tiny))
    assert [path.name for path in checkpoints.iterdir()] == ["step-00000020"]
