"""Runs jobs, each of which writes a file, in processes of one thread each.

Threads within an operation do not help models this small; processes share nothing and scale with the cores.
"""

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


@dataclass(frozen=True)
class Job:
    """work(*arguments) writes `path`. cost: expected work, in any unit that all jobs share."""

    path: Path
    what: str
    cost: float
    work: Callable[..., None]
    arguments: tuple[Any, ...]


def run_jobs(jobs: Sequence[Job], num_processes: int, title: str) -> None:
    """Run the jobs whose file is missing, with a progress bar. Files that are there stay as they are."""
    missing = [job for job in jobs if not job.path.exists()]
    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f}%"))
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bar:
        total, done, start = sum(job.cost for job in missing), 0.0, time.monotonic()
        task = bar.add_task(title, total=total)
        for number, job in enumerate(_finished(missing, num_processes), start=1):
            bar.update(task, advance=job.cost, description=f"{title}: {number} of {len(missing)}")
            done += job.cost
            if not console.is_terminal:
                minutes = (time.monotonic() - start) / 60 * (total / done - 1)
                print(
                    f"{title}: {number} of {len(missing)} is finished, about {minutes:.0f} minutes are left: "
                    f"{job.what}",
                    flush=True,
                )


def _finished(jobs: Sequence[Job], num_processes: int) -> Iterator[Job]:
    """Yield each job when its file is there."""
    if min(num_processes, len(jobs)) < 2:
        before = torch.get_num_threads()
        torch.set_num_threads(1)  # the same numbers as in a process of its own
        try:
            for job in jobs:
                job.work(*job.arguments)
                yield job
        finally:
            torch.set_num_threads(before)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        num_processes, context, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        waiting: dict[Future[None], Job] = {pool.submit(job.work, *job.arguments): job for job in jobs}
        try:
            while waiting:
                done, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    job = waiting.pop(future)
                    future.result()  # raises what the job raised
                    yield job
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
