"""The watchdog ends the job when a rank stalls or dies. It names the rank and its last step.

Collectives do not show which rank stalls: the other ranks wait in a collective, possibly for hours. So a
thread of every rank keeps rewriting its heartbeat, `logs/heartbeats/<rank>.json`. It holds the step and the
time since the main thread last made progress. Rank 0 reads all heartbeats. If a heartbeat is stale, its
process is dead or stopped. If the progress in it is old, the main thread stalls. The other ranks only check
that rank 0's heartbeat is fresh. The rank that finds a stall writes `logs/stall.json` and exits. The others
find that file and exit too. Each rank leaves the stacks of its threads.
"""

import faulthandler
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from mdmscale.parallel.ranks import Ranks
from mdmscale.system.errors import UserError
from mdmscale.system.files import write_file
from mdmscale.system.run_folder import RunFolder

STALLED = 70  # exit status of a rank that the watchdog has ended


class Watchdog:
    """A context manager that watches the ranks. `timeout` is in seconds; 0 turns it off.

    The main thread calls `beat` whenever it makes progress.
    """

    def __init__(self, folder: Path, ranks: Ranks, timeout: float) -> None:
        self.folder = RunFolder(folder)
        self.ranks = ranks
        self.timeout = timeout
        self.interval = min(30.0, timeout / 10)
        self.step = 0
        self._moved = time.monotonic()
        self._pauses = 0
        self._seen: dict[int, tuple[str, float]] = {}  # a rank's last heartbeat, and when it was first seen
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def beat(self, step: int | None = None) -> None:
        """Record that the main thread has made progress."""
        self._moved = time.monotonic()
        self.step = self.step if step is None else step

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within the block the main thread may take any time, for example to write a checkpoint."""
        self._pauses += 1
        try:
            yield
        finally:
            self._pauses -= 1
            self.beat()

    def __enter__(self) -> "Watchdog":
        if self.timeout:
            if self.ranks.is_first:
                self.folder.stall.unlink(missing_ok=True)
            self._write_heartbeat()
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: TracebackType | BaseException | None) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        started = time.monotonic()
        while not self._over.wait(self.interval):
            self._write_heartbeat()
            report = self._read_report() or self._find_stall(started)
            if report is not None and not self._over.is_set():
                self._end(report)

    def _write_heartbeat(self) -> None:
        """Write this rank's heartbeat, which changes at every write.

        A reader looks for changes rather than at times, because the clocks of hosts may differ.
        """
        now = time.monotonic()
        values = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "step": self.step,
            "still": 0.0 if self._pauses else round(now - self._moved, 1),
            "alive": round(now, 1),
        }
        with suppress(UserError):  # the disk is full, which ends the run where it saves
            write_file(self.folder.heartbeat(self.ranks.rank), json.dumps(values), durable=False)

    def _find_stall(self, started: float) -> dict[str, Any] | None:
        """A report of the rank that is dead or stalled; None if all ranks are well.

        A rank whose heartbeat is stale is dead or stopped. Otherwise rank 0 looks for a stalled main thread.
        When one rank stalls, the others soon wait for it, so their stalls begin at nearly the same time. Once
        any rank has been still for the timeout, all ranks that have been still for half of it are suspects.
        The suspect that is furthest behind is reported.
        """
        watched = range(self.ranks.world_size) if self.ranks.is_first else [0]
        still = []
        for rank in watched:
            heartbeat, stale = self._last_heartbeat(rank, started)
            step = heartbeat.get("step")
            if stale > self.timeout:
                state = f"gives no sign of life for {stale:.0f} s"
                return {"rank": rank, "host": heartbeat.get("host"), "step": step, "state": state}
            if heartbeat.get("still", 0.0) > self.timeout / 2:
                still.append((step, -heartbeat["still"], rank, heartbeat))
        if not self.ranks.is_first or all(-seconds <= self.timeout for _, seconds, *_ in still):
            return None
        step, _, rank, heartbeat = min(still)
        state = f"has not moved for {heartbeat['still']:.0f} s"
        return {"rank": rank, "host": heartbeat["host"], "step": step, "state": state}

    def _last_heartbeat(self, rank: int, started: float) -> tuple[dict[str, Any], float]:
        """A rank's heartbeat, and for how many seconds, by this rank's clock, it has not changed."""
        now = time.monotonic()
        try:
            text = self.folder.heartbeat(rank).read_text()
            heartbeat = json.loads(text)
        except (OSError, ValueError):  # not written yet, or being replaced on a network file system
            text, heartbeat = self._seen.get(rank, ("", started))[0], {}
        if rank not in self._seen or self._seen[rank][0] != text:
            self._seen[rank] = (text, now if text else started)
        return heartbeat, now - self._seen[rank][1]

    def _read_report(self) -> dict[str, Any] | None:
        try:
            return json.loads(self.folder.stall.read_text())
        except (OSError, ValueError):
            return None

    def _end(self, report: dict[str, Any]) -> None:
        """Write the stacks of this rank's threads, print the report and exit without waiting for any rank."""
        # Several ranks may find the stall at the same time.
        write_file(self.folder.stall, json.dumps(report), durable=False, writer=f"rank-{self.ranks.rank}-")
        with self.folder.stacks(self.ranks.rank).open("w") as file:
            faulthandler.dump_traceback(file=file, all_threads=True)
        print(
            f"error: rank {report['rank']} on {report['host']} {report['state']}, last in step "
            f"{report['step']} (found by the watchdog of rank {self.ranks.rank}; stacks are in "
            f"{self.folder.logs})",
            file=sys.stderr,
            flush=True,
        )
        os._exit(STALLED)
