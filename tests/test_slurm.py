"""launchers/train.sbatch on a real SLURM: one controller and two emulated nodes of one rank each."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, tiny_values, without_ranks

from mdmscale.training.metrics import read_metrics

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.distributed]

CLUSTER = ROOT / "tests" / "slurm" / "cluster.sh"
SBATCH = ROOT / "launchers" / "train.sbatch"


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A running cluster. Returns the environment in which commands find it."""
    if shutil.which("slurmctld") is None or shutil.which("munged") is None or os.getuid() != 0:
        pytest.skip("needs root and Debian's slurm-wlm and munge: tests/slurm/cluster.sh install")
    folder = tmp_path_factory.mktemp("slurm")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = min(probe.getsockname()[1], 65_000)
    environment = {**without_ranks(), "SLURM_TEST_PORT": str(port), "SLURM_CONF": str(folder / "slurm.conf")}
    environment["TORCH_EXTENSIONS_DIR"] = str(build_folder())
    environment["VENV"] = sys.prefix
    try:
        started = subprocess.run(
            [str(CLUSTER), "start", str(folder)], env=environment, timeout=120, check=False
        )
        if started.returncode:
            pytest.skip("this machine's SLURM does not start; its log is above")
        yield environment
        subprocess.run(["scancel", "--full", "--user", "root"], env=environment, check=False)
    finally:
        subprocess.run([str(CLUSTER), "stop", str(folder)], check=False)


def build_folder() -> Path:
    """The folder where other tests have already built DeepSpeed's communication op."""
    from torch.utils.cpp_extension import get_default_build_root

    return Path(get_default_build_root()) / f"py{sys.version_info.major}{sys.version_info.minor}_cpu"


class Job:
    """A submitted job."""

    def __init__(self, slurm: dict[str, str], folder: Path, *arguments: str) -> None:
        self.slurm, self.output = slurm, folder / "slurm.out"
        command = ["sbatch", "--parsable", "--nodes=2", f"--output={self.output}", *arguments]
        self.number = self._run(*command).strip()

    def _run(self, *command: str) -> str:
        result = subprocess.run(
            command, cwd=ROOT, env=self.slurm, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    def state(self) -> str:
        return " ".join(re.findall(r"JobState=(\w+)", self._run("scontrol", "show", "job", self.number)))

    def signal(self) -> None:
        """Send the batch script the signal that SLURM sends two minutes before the time limit."""
        self._run("scancel", "--batch", "--signal=USR1", self.number)

    def wait(self, seconds: float = 240) -> str:
        """Wait for the end of the job. Returns its output."""
        deadline = time.monotonic() + seconds
        while set(self.state().split()) & {"PENDING", "RUNNING", "COMPLETING", "CONFIGURING"}:
            assert time.monotonic() < deadline, self.text()
            time.sleep(0.5)
        return self.text()

    def text(self) -> str:
        return self.output.read_text() if self.output.exists() else ""


def write_config(corpus: Path, folder: Path, steps: int, **run: Any) -> str:
    values = tiny_values(corpus, folder / "runs")
    values["run"] |= run
    values["train"]["steps"] = steps
    values["logging"] = {"tensorboard": False, "every": 1}
    (folder / "config.yaml").write_text(json.dumps(values))
    return str(folder / "config.yaml")


def wait_for_steps(folder: Path, job: Job, steps: int) -> None:
    deadline = time.monotonic() + 180
    while not (folder / "metrics.jsonl").exists() or len(read_metrics(folder)) < steps:
        assert time.monotonic() < deadline, job.text()
        time.sleep(0.2)


def losses(folder: Path) -> np.ndarray:
    return np.array([record["loss"] for record in read_metrics(folder)])


def test_two_nodes_and_a_signalled_run_give_the_same_losses(
    slurm: dict[str, str], corpus: Path, tmp_path: Path
) -> None:
    config = write_config(corpus, tmp_path, 400)
    whole = Job(slurm, tmp_path, str(SBATCH), config, "run.name=whole")
    output = whole.wait()
    assert whole.state() == "COMPLETED", output
    assert "2 ranks" in output and "finished" in output
    assert len(losses(tmp_path / "runs" / "whole")) == 400
    logs = list((tmp_path / "runs" / "whole" / "logs" / f"{whole.number}-0").rglob("stdout.log"))
    assert len(logs) == 2, "a log of each rank"

    stopped = Job(slurm, tmp_path, str(SBATCH), config, "run.name=stopped")
    wait_for_steps(tmp_path / "runs" / "stopped", stopped, 20)
    stopped.signal()
    output = stopped.wait(400)
    assert stopped.state() == "COMPLETED", output
    assert "asked to stop" in output and "queued again after step-" in output and "continuing from" in output
    np.testing.assert_array_equal(losses(tmp_path / "runs" / "stopped"), losses(tmp_path / "runs" / "whole"))


def test_a_killed_rank_ends_the_job_with_a_message(
    slurm: dict[str, str], corpus: Path, tmp_path: Path
) -> None:
    config = write_config(corpus, tmp_path, 100_000, name="killed")
    job = Job(slurm, tmp_path, str(SBATCH), config)
    wait_for_steps(tmp_path / "runs" / "killed", job, 5)
    files = (tmp_path / "runs" / "killed" / "logs" / "heartbeats").glob("*.jsonl")
    heartbeats = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    (pid,) = [heartbeat["pid"] for heartbeat in heartbeats if heartbeat["rank"] == 1]
    os.kill(pid, signal.SIGKILL)
    output = job.wait()
    assert job.state() == "FAILED", output
    assert "error: training ended with status" in output
    assert "queued again" not in output


def test_an_array_trains_seeds_apart(slurm: dict[str, str], corpus: Path, tmp_path: Path) -> None:
    config = write_config(corpus, tmp_path, 20, name="seeds")
    Job(slurm, tmp_path, "--array=3-4", str(SBATCH), config).wait()
    first, second = (tmp_path / "runs" / f"seeds-seed{seed}" for seed in (3, 4))
    assert len(losses(first)) == len(losses(second)) == 20
    assert (losses(first) != losses(second)).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "usage: sbatch"),
        (["missing.yaml"], "usage: sbatch"),
        (["configs/quickstart.yaml", "train.stepz=3"], "train.stepz"),
    ],
)
def test_bad_arguments_end_the_job_at_once(
    slurm: dict[str, str], tmp_path: Path, arguments: list[str], message: str
) -> None:
    job = Job(slurm, tmp_path, str(SBATCH), *arguments)
    assert message in job.wait(60)
    assert job.state() == "FAILED"


def test_fruitless_requeues_end(slurm: dict[str, str], corpus: Path, tmp_path: Path) -> None:
    """A job that is always signalled before its first checkpoint gives up instead of requeueing forever."""
    config = write_config(corpus, tmp_path, 400, name="fruitless")
    folder = tmp_path / "runs" / "fruitless"
    folder.mkdir(parents=True)
    (folder / "fruitless-requeues").write_text("3\n")
    job = Job(slurm, tmp_path, str(SBATCH), config, "data.path=/no/such/data")
    deadline = time.monotonic() + 60
    while not (folder / "logs").exists():  # which the script makes just before it sets its trap
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(1.0)
    job.signal()
    output = job.wait()
    assert "3 requeues in a row brought no new checkpoint" in output, output
    assert job.state() == "FAILED"
