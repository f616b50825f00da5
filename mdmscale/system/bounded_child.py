"""The child process of bounded.py: it serves calls of one function, each within its limits.

It is run as a script and imports the package only after it has been told where that is. The protocol on
stdin and stdout: the length as 8 bytes, then a pickle from the parent or JSON from here. The parent trusts
nothing of what comes back, so that is never a pickle.
"""

import importlib
import json
import pickle
import resource
import signal
import sys
from contextlib import suppress
from typing import Any, BinaryIO


def main() -> None:
    """Import the function, say so, and answer calls until stdin ends, as it does when the parent dies."""
    calls, answers = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # whatever else is printed
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    sys.path[:], module, name, seconds, num_bytes = pickle.loads(read(calls))
    sys.modules["torch"] = None  # type: ignore[assignment]  # transformers would import it, for seconds
    function = getattr(importlib.import_module(module), name)
    with suppress(ValueError, OSError):  # a system that has no such limit, or a lower one
        resource.setrlimit(resource.RLIMIT_AS, (num_bytes, num_bytes))
    answer(answers, {"result": None})
    while content := read(calls):
        # Of processor time, so that a busy machine refuses nothing. The signal ends the process, whatever it
        # is doing, and even if no parent is left.
        signal.setitimer(signal.ITIMER_PROF, seconds)
        answer(answers, outcome(function, pickle.loads(content)))
        signal.setitimer(signal.ITIMER_PROF, 0)


def outcome(function: Any, arguments: tuple[Any, ...]) -> dict[str, Any]:
    """What a call returns, or the text of what it raises."""
    try:
        return {"result": function(*arguments)}
    except MemoryError:
        return {"memory": True}
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return {"error": lines[0][:1000] if lines else type(error).__name__}


def answer(stream: BinaryIO, content: dict[str, Any]) -> None:
    """Send an answer. One that does not fit into memory as JSON either is one for lack of memory."""
    try:
        text = json.dumps(content).encode()
    except MemoryError:
        text = json.dumps({"memory": True}).encode()
    stream.write(len(text).to_bytes(8))
    stream.write(text)
    stream.flush()


def read(stream: BinaryIO) -> bytes:
    """The next message; empty at the end of the stream."""
    size = int.from_bytes(stream.read(8))
    return stream.read(size)


if __name__ == "__main__":
    main()
