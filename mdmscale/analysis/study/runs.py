"""The training runs of a study: processes of the train command, several at a time.

Finished runs are not repeated.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mdmscale.system.errors import UserError
from mdmscale.system.run_folder import RunFolder

POLL_SECONDS = 0.5


@dataclass(frozen=True)
class StudyRun:
    """One training run: a method under a seed."""

    method: str
    seed: int
    output_dir: Path

    @property
    def name(self) -> str:
        return f"{self.method.replace('+', '-')}-{self.seed}"

    @property
    def folder(self) -> Path:
        return self.output_dir / self.name

    @property
    def log(self) -> Path:
        return self.output_dir / f"{self.name}.log"

    @property
    def is_finished(self) -> bool:
        return RunFolder(self.folder).has_export

    def steps_done(self) -> int:
        """Finished steps: metrics.jsonl has one line for each."""
        try:
            return RunFolder(self.folder).metrics.read_bytes().count(b"\n")
        except FileNotFoundError:
            return 0


def train_all(
    runs: list[StudyRun],
    command: Callable[[StudyRun], list[str]],
    jobs: int,
    num_gpus: int,
    watch: Callable[[], None],
) -> Iterator[StudyRun]:
    """Train the runs, `jobs` at a time. Yields finished runs first, and then each run when it finishes.

    Args:
        command: the arguments of `mdmscale train` for a run.
        watch: called repeatedly while runs are in progress.

    Raises:
        UserError: if a run fails; it names the log. The other runs are stopped.
    """
    waiting = [run for run in runs if not run.is_finished]
    yield from (run for run in runs if run.is_finished)
    with stopped_on_leaving() as running:
        while waiting or running:
            while waiting and len(running) < jobs:
                run = waiting.pop(0)
                taken = {slot for slot, _ in running.values()}
                slot = min(set(range(jobs)) - taken)
                running[run] = slot, start(run, command(run), jobs, slot % num_gpus if num_gpus else None)
            time.sleep(POLL_SECONDS)
            watch()
            for run, (_, process) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[run]
                if process.returncode or not run.is_finished:
                    raise UserError(f"{run.log}: this run failed (exit status {process.returncode})")
                yield run


def start(run: StudyRun, arguments: list[str], jobs: int, gpu: int | None) -> subprocess.Popen[bytes]:
    """Start one process on its share of the cores, or on one GPU, with its output in the run's log."""
    run.output_dir.mkdir(parents=True, exist_ok=True)
    threads = max(1, len(os.sched_getaffinity(0)) // jobs)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    if gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = str(gpu)
    with run.log.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "mdmscale", "train", *arguments],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


@contextmanager
def stopped_on_leaving() -> Iterator[dict[StudyRun, tuple[int, subprocess.Popen[bytes]]]]:
    """The running processes. On leaving, the remaining ones are asked to save a checkpoint and end."""
    running: dict[StudyRun, tuple[int, subprocess.Popen[bytes]]] = {}
    try:
        yield running
    finally:
        for _, process in running.values():
            process.terminate()
        for _, process in running.values():
            process.wait()
