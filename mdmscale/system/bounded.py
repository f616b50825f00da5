"""Calls of functions that may take for ever, or all memory: they run in a child process with limits.

Chat templates and regular expressions are programs that come with a model or a config. Nothing inside a
Python process can end one reliably: a regular expression holds the interpreter in C, and one expression of a
template can ask for a terabyte. A child process can be ended at any moment. It costs a second or less to
start, once for each function and process, and 0.1 ms a call.
"""

import functools
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

from mdmscale.system import bounded_child

SECONDS = 5.0  # of processor time, for a call
NUM_BYTES = 2**30  # of address space, for the process
LONGEST = 2**26  # bytes of an answer


class BoundedError(Exception):
    """A call that has failed, in one line: by an error of its own, or for want of time or memory."""


def bounded(function: str, *arguments: Any) -> Any:
    """Call `function` ("module:name") in a child process. Arguments are pickled, the result comes as JSON.

    The child has no torch.

    Raises:
        BoundedError: where the call takes more than `SECONDS` of processor time or `NUM_BYTES` of memory, its
            result is longer than `LONGEST`, or it raises an error.
    """
    return _child(function, os.getpid()).call(arguments)


@functools.cache  # by process as well: a fork of this process does not share its children
def _child(function: str, pid: int) -> "_Child":
    return _Child(function)


class _Child:
    """A process that serves calls of a function, one at a time. It is started when it is needed."""

    def __init__(self, function: str) -> None:
        self._module, _, self._name = function.partition(":")
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def call(self, arguments: tuple[Any, ...]) -> Any:
        with self._lock:
            if self._process is None:
                self._process = self._start()
            try:
                answer = _ask(self._process, arguments)
            except BaseException:  # also an interruption: the next call must not read this one's answer
                self._process.kill()
                self._process.wait()
                self._process = None
                raise
        if "memory" in answer:
            raise BoundedError(f"needs more than {NUM_BYTES / 2**30:g} GiB of memory")
        if "error" in answer:
            raise BoundedError(answer["error"])
        return answer["result"]

    def _start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-P", str(Path(bounded_child.__file__))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"},
        )
        weakref.finalize(self, _end, process, os.getpid())
        _ask(process, (sys.path, self._module, self._name, SECONDS, NUM_BYTES))
        return process


def _ask(process: subprocess.Popen[bytes], content: Any) -> dict[str, Any]:
    assert process.stdin is not None and process.stdout is not None
    message = pickle.dumps(content, pickle.HIGHEST_PROTOCOL)
    try:
        process.stdin.write(len(message).to_bytes(8))
        process.stdin.write(message)
        process.stdin.flush()
        size = int.from_bytes(_read(process, 8))
        if size > LONGEST:
            raise BoundedError(f"gives more than {LONGEST // 2**20} MiB of text")
        return json.loads(_read(process, size))
    except (BrokenPipeError, EOFError):
        status = process.wait()
        if status == -signal.SIGPROF:
            raise BoundedError(f"takes more than {SECONDS:g} s") from None
        raise BoundedError(f"ended its process (status {status}), as for want of memory") from None


def _read(process: subprocess.Popen[bytes], size: int) -> bytes:
    assert process.stdout is not None
    content = process.stdout.read(size)
    if len(content) < size:
        raise EOFError
    return content


def _end(process: subprocess.Popen[bytes], owner: int) -> None:
    """End a child at the exit of the process that started it; a fork of that process leaves it alone."""
    if os.getpid() == owner:
        process.kill()
        process.wait()
