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

from mdmscale.analysis.study.budgets import Arm
from mdmscale.system.errors import UserError
from mdmscale.system.run_folder import RunFolder

POLL_SECONDS = 0.5


@dataclass(frozen=True, eq=False)
class StudyRun:
    """One training run: an arm under a seed."""

    arm: Arm
    seed: int
    output_dir: Path

    @property
    def name(self) -> str:
        return f"{self.arm.method.run_name}-{self.seed}"

    @property
    def folder(self) -> Path:
        return self.output_dir / self.name

    @property
    def log(self) -> Path:
        return self.output_dir / f"{self.name}.log"

    @property
    def is_finished(self) -> bool:
        return RunFolder(self.folder).has_export

    @property
    def overrides(self) -> list[str]:
        """The overrides of the study's config that make this run."""
        own = [f"run.name={self.name}", f"run.output_dir={self.output_dir}", f"run.seed={self.seed}"]
        return [*self.arm.overrides, *own]

    def steps_done(self) -> int:
        """Finished steps: metrics.jsonl has one line for each."""
        try:
            return RunFolder(self.folder).metrics.read_bytes().count(b"\n")
        except FileNotFoundError:
            return 0


@dataclass(frozen=True)
class Machine:
    """How runs share the machine: `jobs` at a time, each on `ranks` processes.

    With GPUs each process has one: job 0 the first `ranks` of them, job 1 the next.
    """

    jobs: int
    ranks: int
    num_gpus: int

    @classmethod
    def of(cls, jobs: int | None, ranks: int, num_gpus: int) -> "Machine":
        """As many jobs as fit, unless `jobs` says how many.

        Raises:
            UserError: where a run needs more GPUs than there are.
        """
        if num_gpus and ranks > num_gpus:
            raise UserError(f"--ranks {ranks}: there are {num_gpus} GPUs")
        devices = num_gpus or len(os.sched_getaffinity(0))
        return cls(jobs or max(1, devices // ranks), ranks, num_gpus)

    def environment(self, job: int) -> dict[str, str]:
        """The variables of the processes of a job: its share of the cores, and its GPUs."""
        threads = max(1, len(os.sched_getaffinity(0)) // (self.jobs * self.ranks))
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        if self.num_gpus:
            gpus = [(job * self.ranks + rank) % self.num_gpus for rank in range(self.ranks)]
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, gpus))
        return environment

    def command(self, arguments: list[str]) -> list[str]:
        """The command of `mdmscale train` on the ranks of a job."""
        python, train = sys.executable, ["-m", "mdmscale", "train", *arguments]
        if self.ranks == 1:
            return [python, *train]
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(self.ranks)]
        return [python, *torchrun, *train]


def train_all(
    runs: list[StudyRun], config: list[str], machine: Machine, watch: Callable[[], None]
) -> Iterator[StudyRun]:
    """Train the runs, in order, several at a time. Yields finished ones first, then each when it finishes.

    Args:
        config: the arguments of `mdmscale train` that all runs have.
        watch: called repeatedly while runs are in progress.

    Raises:
        UserError: if a run fails; it names the log. The other runs are stopped.
    """
    waiting = [run for run in runs if not run.is_finished]
    yield from (run for run in runs if run.is_finished)
    with stopped_on_leaving() as running:
        while waiting or running:
            while waiting and len(running) < machine.jobs:
                run = waiting.pop(0)
                taken = {slot for slot, _ in running.values()}
                slot = min(set(range(machine.jobs)) - taken)
                running[run] = slot, start(run, [*config, *run.overrides], machine, slot)
            time.sleep(POLL_SECONDS)
            watch()
            for run, (_, process) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[run]
                if process.returncode or not run.is_finished:
                    raise UserError(f"{run.log}: this run failed (exit status {process.returncode})")
                yield run


def start(run: StudyRun, arguments: list[str], machine: Machine, job: int) -> subprocess.Popen[bytes]:
    """Start a run as a job of the machine, with its output in the run's log."""
    run.output_dir.mkdir(parents=True, exist_ok=True)
    with run.log.open("ab") as log:
        return subprocess.Popen(
            machine.command(arguments),
            env=machine.environment(job),
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
