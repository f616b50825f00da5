"""The watchdog ends the job when a rank stalls or dies. It names the rank, its last step and what it did.

Collectives do not show which rank stalls: the other ranks wait in a collective, possibly for hours. So a
thread of every rank keeps rewriting its heartbeat: a line of its own in its node's file,
`logs/heartbeats/<first rank of the node>.jsonl`. It holds the step, the section (a step, an evaluation, ...)
and the time since the main thread last made progress. Each section has a limit. Rank 0 reads all heartbeats.
If a heartbeat is stale, its process is dead or stopped. If the progress in it is older than the limit, the
main thread stalls. The other ranks only check that rank 0's heartbeat is fresh. The rank that finds a stall
writes `logs/stall.json` and exits. The others find that file and exit too. Each rank leaves the stacks of its
threads.

During set-up nothing is written yet, as it may end with a mistake of the user: each rank watches itself.
"""

import faulthandler
import json
import os
import shutil
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from mdmscale.config.run import RunSection
from mdmscale.parallel.ranks import Ranks
from mdmscale.system.files import write_file
from mdmscale.system.run_folder import RunFolder

STALLED = 70  # exit status of a rank that the watchdog has ended

Section = Literal["set-up", "step", "evaluation", "save", "export"]
_DOING: dict[Section, str] = {
    "set-up": "in set-up",
    "step": "in a step",
    "evaluation": "in an evaluation",
    "save": "saving a checkpoint",
    "export": "exporting the model",
}
_SLOT = 512  # bytes of a heartbeat; it never crosses a page, so a reader sees it whole
_LONGEST_HOST = 255


def limits_of(options: RunSection) -> dict[Section, float]:
    """The seconds that a rank may stand still in each section; 0 for no limit."""
    return {
        "set-up": options.setup_timeout,
        "step": options.stall_timeout,
        "evaluation": options.eval_timeout,
        "save": options.save_timeout,
        "export": options.export_timeout,
    }


class Watchdog:
    """A context manager that watches the ranks. `limits` are in seconds; without any, nothing is watched.

    It begins with set-up. The main thread says by `within` what it does, and by `beat` that it has made
    progress.
    """

    def __init__(self, folder: Path, ranks: Ranks, limits: Mapping[Section, float]) -> None:
        self.folder = RunFolder(folder)
        self.ranks = ranks
        self.limits = limits
        self.interval = min([30.0, *(limit / 10 for limit in limits.values() if limit)])
        self.step = 0
        self._local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        self._now: tuple[Section, float] = "set-up", time.monotonic()  # and when progress was last made
        self._seen: dict[int, tuple[str, float]] = {}  # a rank's last heartbeat, and when it was first seen
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def forget_earlier_run(self) -> None:
        """Remove what an earlier start has left. On rank 0, after set-up and before any rank takes a step."""
        self.folder.stall.unlink(missing_ok=True)
        shutil.rmtree(self.folder.heartbeats, ignore_errors=True)

    def beat(self, step: int | None = None) -> None:
        """Record that the main thread has made progress."""
        self._now = self._now[0], time.monotonic()
        self.step = self.step if step is None else step

    @contextmanager
    def within(self, section: Section) -> Iterator[None]:
        """Within the block the limit of `section` counts, from its beginning on."""
        before, _ = self._now
        self._now = section, time.monotonic()
        if before == "set-up" and self._thread.is_alive():
            self._write_heartbeat()  # at once: a rank that dies in the first interval has a host and a pid
        try:
            yield
        finally:
            self._now = before, time.monotonic()

    def __enter__(self) -> "Watchdog":
        if any(self.limits.values()):
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: TracebackType | BaseException | None) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        started = time.monotonic()
        while not self._over.wait(self.interval):
            if self._now[0] == "set-up":
                started, report = time.monotonic(), self._own_stall()
            else:
                self._write_heartbeat()
                report = self._read_report() or self._find_stall(started)
            if report is not None and not self._over.is_set():
                self._end(report)

    def _write_heartbeat(self) -> None:
        """Write this rank's heartbeat, which changes at every write, to its place in the node's file.

        A reader looks for changes rather than at times, because the clocks of hosts may differ.
        """
        line = json.dumps(self._heartbeat()).ljust(_SLOT - 1) + "\n"
        assert len(line) == _SLOT
        path = self.folder.heartbeat(self.ranks.rank - self._local_rank)
        with suppress(OSError):  # of a network file system, for a moment; if it lasts, the heartbeat is stale
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
            try:
                os.pwrite(descriptor, line.encode(), self._local_rank * _SLOT)
            finally:
                os.close(descriptor)

    def _heartbeat(self) -> dict[str, Any]:
        now, (section, moved) = time.monotonic(), self._now
        return {
            "rank": self.ranks.rank,
            "host": socket.gethostname()[:_LONGEST_HOST],
            "pid": os.getpid(),
            "step": self.step,
            "section": section,
            "still": round(now - moved, 1),
            "alive": round(now, 1),
        }

    def _own_stall(self) -> dict[str, Any] | None:
        heartbeat = self._heartbeat()
        return _report(heartbeat, _standstill(heartbeat)) if self._lateness(heartbeat) > 1 else None

    def _find_stall(self, started: float) -> dict[str, Any] | None:
        """A report of the rank that is dead or stalled; None if all ranks are well.

        A rank whose heartbeat is stale is dead or stopped. Otherwise rank 0 looks for a stalled main thread.
        When one rank stalls, the others soon wait for it, so their stalls begin at nearly the same time. Once
        any rank has been still for its limit, all ranks that have been still for half of theirs are suspects.
        The suspect that is furthest behind is reported.
        """
        heartbeats = self._read_heartbeats()
        for rank in range(self.ranks.world_size) if self.ranks.is_first else [0]:
            heartbeat, stale = heartbeats.get(rank, {"rank": rank}), self._stale(rank, heartbeats, started)
            if stale > self.limits["step"] > 0:
                return _report(heartbeat, f"gives no sign of life for {stale:.0f} s")
        late = {rank: self._lateness(heartbeat) for rank, heartbeat in heartbeats.items()}
        if not self.ranks.is_first or all(lateness <= 1 for lateness in late.values()):
            return None
        suspects = [heartbeats[rank] for rank, lateness in late.items() if lateness > 0.5]
        last = min(suspects, key=lambda each: (each["step"], -each["still"], each["rank"]))
        return _report(last, _standstill(last))

    def _read_heartbeats(self) -> dict[int, dict[str, Any]]:
        """The heartbeats by rank: all of them on rank 0, those of rank 0's node elsewhere.

        One that is not written yet, or is being replaced on a network file system, is left out.
        """
        files = self.folder.heartbeats.glob("*.jsonl") if self.ranks.is_first else [self.folder.heartbeat(0)]
        found = {}
        for file in files:
            with suppress(OSError):
                for line in file.read_bytes().split(b"\n"):
                    with suppress(ValueError):
                        heartbeat = json.loads(line.lstrip(b"\0"))  # of ranks that have written nothing yet
                        found[heartbeat["rank"]] = heartbeat
        return found

    def _stale(self, rank: int, heartbeats: dict[int, dict[str, Any]], started: float) -> float:
        """For how many seconds, by this rank's clock, a rank's heartbeat has not changed."""
        now = time.monotonic()
        text = json.dumps(heartbeats[rank]) if rank in heartbeats else self._seen.get(rank, ("", 0.0))[0]
        if rank not in self._seen or self._seen[rank][0] != text:
            self._seen[rank] = (text, now if text else started)
        return now - self._seen[rank][1]

    def _lateness(self, heartbeat: dict[str, Any]) -> float:
        """For how long a rank has been still, in parts of its section's limit."""
        limit = self.limits[heartbeat["section"]]
        return heartbeat["still"] / limit if limit else 0.0

    def _read_report(self) -> dict[str, Any] | None:
        try:
            return json.loads(self.folder.stall.read_text())
        except (OSError, ValueError):
            return None

    def _end(self, report: dict[str, Any]) -> None:
        """Write the stacks of this rank's threads, print the report and exit without waiting for any rank."""
        place = "above"
        if self._now[0] == "set-up":  # there may be no run folder yet
            faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        else:
            # Several ranks may find the stall at the same time.
            writer = f"rank-{self.ranks.rank}-"
            write_file(self.folder.stall, json.dumps(report), durable=False, writer=writer)
            with self.folder.stacks(self.ranks.rank).open("w") as file:
                faulthandler.dump_traceback(file=file, all_threads=True)
            place = f"in {self.folder.logs}"
        print(
            f"error: rank {report['rank']} on {report['host']} {report['state']}, last in step "
            f"{report['step']} (found by the watchdog of rank {self.ranks.rank}; stacks are {place})",
            file=sys.stderr,
            flush=True,
        )
        os._exit(STALLED)


def _standstill(heartbeat: dict[str, Any]) -> str:
    return f"has not moved for {heartbeat['still']:.0f} s {_DOING[heartbeat['section']]}"


def _report(heartbeat: dict[str, Any], state: str) -> dict[str, Any]:
    return {name: heartbeat.get(name) for name in ("rank", "host", "step", "section")} | {"state": state}
