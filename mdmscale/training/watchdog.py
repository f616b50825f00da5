"""A watchdog: a rank that stalls or dies makes the whole job end, naming the rank and its last step.

Collectives can't tell: while one rank stands still all others wait in one, for hours if nothing ends them. So
a thread of every rank keeps a file fresh, `logs/heartbeats/<rank>.json`, with the step and the time since the
main thread last moved. Rank 0 reads all of them: a file that is not kept fresh tells that the process is dead
or stopped, an old move that its main thread stands still. The others only see whether rank 0's is fresh. Who
finds a stall writes it to `logs/stall.json` and ends; all others find that and end too, each leaving its
threads' stacks.
"""

import faulthandler
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from mdmscale.parallel.ranks import Ranks
from mdmscale.system.files import write_file
from mdmscale.system.run_folder import RunFolder

STALLED = 70  # exit status of a rank that the watchdog has ended


class Watchdog:
    """Watches while it is entered; `timeout` is in seconds, 0 watches nothing.

    The main thread calls `beat` wherever it makes progress.
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
        """The main thread has moved."""
        self._moved = time.monotonic()
        self.step = self.step if step is None else step

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within it the main thread may take as long as it needs, as in writing a checkpoint."""
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
        """Fresh by its count of seconds, as clocks of other hosts may differ."""
        now = time.monotonic()
        values = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "step": self.step,
            "still": 0.0 if self._pauses else round(now - self._moved, 1),
            "alive": round(now, 1),
        }
        write_file(self.folder.heartbeat(self.ranks.rank), json.dumps(values), durable=False)

    def _find_stall(self, started: float) -> dict[str, Any] | None:
        """A rank that is not alive; else, for rank 0 to tell, the one that all that stand still wait for.

        They stopped within moments of it, so one that is still for the timeout makes all suspects that are
        still for half of it, and the furthest behind is named.
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
        """A rank's heartbeat, and for how many of this rank's seconds it has been the same."""
        now = time.monotonic()
        try:
            text = self.folder.heartbeat(rank).read_text()
            heartbeat = json.loads(text)
        except (OSError, ValueError):  # not there yet, or just being replaced on a network file system
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
        """Leave the stacks of this rank's threads, say what was found, and end, waiting for nobody."""
        # Several ranks may find it at once.
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
