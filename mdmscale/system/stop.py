"""Requests to stop a run early: a signal, or a file in the run folder."""

import signal
from pathlib import Path

from mdmscale.system.run_folder import RunFolder


class StopRequest:
    """Notices requests to stop this run: a signal, or a file named `stop` in the run folder."""

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

    def __init__(self, run_folder: Path) -> None:
        self.file = RunFolder(run_folder).stop
        self.signalled = False

    def __enter__(self) -> "StopRequest":
        self._previous = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        self.signalled = True
        signal.signal(number, self._previous[signal.Signals(number)])  # a second signal takes effect at once

    def seen(self) -> bool:
        """Whether this rank has seen a request. The answer is reduced with the step's other scalars."""
        return self.signalled or self.file.exists()
