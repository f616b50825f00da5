"""Processes that no launcher has made ranks are refused before torch is imported."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mdmscale.system.errors import UserError
from mdmscale.system.launch import check_launch
from mdmscale.train_command import main


@pytest.mark.parametrize(
    ("environment", "parts"),
    [
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "1"}, ["SLURM_NTASKS = 2", "srun", "launchers/train.sbatch"]),
        ({"WORLD_SIZE": "4"}, ["WORLD_SIZE = 4, but RANK is not set", "torchrun", "unset WORLD_SIZE"]),
        ({"WORLD_SIZE": "x"}, ["WORLD_SIZE = 'x' is no number from 1 on"]),
        ({"WORLD_SIZE": "0"}, ["WORLD_SIZE = '0' is no number from 1 on"]),
        ({"OMPI_COMM_WORLD_SIZE": "3", "OMPI_COMM_WORLD_RANK": "0"}, ["COMM_WORLD_SIZE = 3", "mpirun"]),
        ({"PMI_SIZE": "2", "PMI_RANK": "0"}, ["PMI_SIZE = 2", "torchrun --nproc-per-node"]),
        ({"RANK": "1"}, ["WORLD_SIZE is not set", "torchrun or deepspeed"]),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, ["RANK = '-1' is no number from 0 on"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_processes_that_are_no_ranks_are_refused(environment: dict[str, str], parts: list[str]) -> None:
    with pytest.raises(UserError) as refused:
        check_launch(environment)
    (problem,) = refused.value.problems
    for part in parts:
        assert part in problem
    assert "\n" not in problem


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"WORLD_SIZE": "1"},
        {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"},
        {"SLURM_NTASKS": "8"},  # a shell that salloc gives
        {"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "RANK": "9", "WORLD_SIZE": "16"},  # torchrun under srun
        {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"},
    ],
    ids=lambda value: " ".join(value) or "nothing",
)
def test_one_process_and_launched_ranks_are_accepted(environment: dict[str, str]) -> None:
    check_launch(environment)


def test_the_command_checks_it_before_anything_is_written(
    tiny: dict[str, Any],
    write_config: Callable[[dict[str, Any]], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = str(write_config(tiny))
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setenv("SLURM_PROCID", "0")
    with pytest.raises(UserError, match="each would train the whole run in the same folder"):
        main(["--config", config])
    assert not (tmp_path / "runs").exists()
    assert main(["--config", config, "--folder"]) == 0  # as launchers/train.sbatch asks in such a job
