"""Keeps what libraries print out of the terminal: it goes to a log, so that a run's own lines can be read.

DeepSpeed prints its memory at every turn, and logs to stdout. Errors of its logger still reach the terminal.
What an op's compiler or C++ code writes itself is not touched.
"""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, Any

LIBRARIES = ("deepspeed", "torch")  # packages whose prints and warnings go to the log
LOGGERS = ("DeepSpeed", "torch.distributed")


class LibraryLog:
    """The lines of libraries: in memory until `open` names a file, because bad input must write nothing."""

    def __init__(self) -> None:
        self._file: IO[str] | None = None
        self._path: Path | None = None
        self._lines: list[str] = []

    def open(self, path: Path) -> None:
        """Write to `path` what has been kept, and from now on. The file appears with its first line."""
        self._path = path
        kept, self._lines = self._lines, []
        for text in kept:
            self.write(text)

    def write(self, text: str) -> None:
        """Add text."""
        if self._path is None:
            self._lines.append(text)
            return
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("a", encoding="utf-8", buffering=1)
        self._file.write(text)

    def kept(self) -> str:
        """The text that is in memory only, because no file has been named."""
        return "".join(self._lines)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
        self._file = self._path = None


class _SortedOutput:
    """stdout that sends what a library prints to a log: the module that calls print decides."""

    def __init__(self, terminal: Any, log: LibraryLog) -> None:
        self.terminal, self.log = terminal, log

    def write(self, text: str) -> int:
        if _writer(sys._getframe(1)) in LIBRARIES:
            self.log.write(text)
            return len(text)
        return self.terminal.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.terminal, name)


@contextmanager
def library_output() -> Iterator[LibraryLog]:
    """Send what libraries print, warn of, and log below errors to a log. A block in this one has its log."""
    if isinstance(sys.stdout, _SortedOutput):
        yield sys.stdout.log
        return
    log = LibraryLog()
    stdout, showwarning = sys.stdout, warnings.showwarning
    sort = _sorter(log)
    sys.stdout = _SortedOutput(stdout, log)  # type: ignore[assignment]
    warnings.showwarning = _shower(log, showwarning)
    for name in LOGGERS:
        logging.getLogger(name).addFilter(sort)
    try:
        yield log
    finally:
        log.close()
        sys.stdout, warnings.showwarning = stdout, showwarning
        for name in LOGGERS:
            logging.getLogger(name).removeFilter(sort)


def _sorter(log: LibraryLog) -> Any:
    """A filter of loggers: it writes every record to the log, and lets only errors reach the terminal."""
    formatter = logging.Formatter("[%(asctime)s] [%(levelname)s] [%(filename)s:%(lineno)d] %(message)s")

    def sort(record: logging.LogRecord) -> bool:
        log.write(f"{formatter.format(record)}\n")
        return record.levelno >= logging.ERROR

    return sort


def _shower(log: LibraryLog, show: Any) -> Any:
    folders = tuple(f"/site-packages/{name}/" for name in LIBRARIES)

    def show_sorted(
        message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: Any = None
    ) -> None:
        if file is None and any(folder in filename for folder in folders):
            log.write(warnings.formatwarning(message, category, filename, lineno, line))
        else:
            show(message, category, filename, lineno, file, line)

    return show_sorted


def _writer(frame: FrameType | None) -> str:
    """The package of the code that writes. rich passes prints on while it shows a progress bar."""
    while frame is not None:
        package = frame.f_globals.get("__name__", "").partition(".")[0]
        if package != "rich":
            return package
        frame = frame.f_back
    return ""
