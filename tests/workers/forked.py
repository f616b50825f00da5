"""Jobs on forks of one warm process: ranks and scripts that start in milliseconds, each in a fresh process.

`fork_server.py` runs them. A test of the launch itself uses a real launch, conftest's `launch_ranks`.
"""

import atexit
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

SERVER = Path(__file__).parent / "fork_server.py"
# Neither threads nor a CUDA context survive a fork: these ranks are gloo's, on one core each.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
}


@cache
def server_address() -> str:
    """The socket of the server. The first call starts the server, which ends with this process."""
    folder = Path(tempfile.mkdtemp(prefix="mdmscale-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    address = str(folder / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        subprocess.Popen(
            [sys.executable, str(SERVER), str(listener.fileno())],
            pass_fds=[listener.fileno()],
            env={**os.environ, **ENVIRONMENT},
            stdin=subprocess.PIPE,  # its end tells the server that this process has ended
        )
    return address


class Job:
    """Start a script on `num_ranks` forked ranks, or as one process without a launcher if that is 0.

    `address` is the server's socket; by default this process has a server of its own.
    """

    def __init__(
        self,
        command: list[str],
        num_ranks: int,
        folder: Path,
        environment: dict[str, str],
        join_output: bool = True,
        address: str | None = None,
    ) -> None:
        address = address or server_address()
        self._command = " ".join(command)
        files = Path(tempfile.mkdtemp(prefix="job-", dir=Path(address).parent))
        self._stdout = files / "stdout"
        self._stderr = self._stdout if join_output else files / "stderr"
        for file in (self._stdout, self._stderr):
            file.touch()
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(address)
        request = {
            "command": command,
            "num_ranks": num_ranks,
            "folder": str(folder),
            "environment": environment | ENVIRONMENT,
            "stdout": str(self._stdout),
            "stderr": str(self._stderr),
        }
        self._connection.sendall(json.dumps(request).encode() + b"\n")
        self._answers = self._connection.makefile("rb", buffering=0)
        started = self._answers.readline()
        assert started, f"{SERVER.name} has ended; what it printed is above"
        self.pid = int(started)  # also the group of all its processes
        self.returncode: int | None = None

    @property
    def stdout(self) -> str:
        """The output of the ranks so far."""
        return self._stdout.read_text(errors="replace")

    @property
    def stderr(self) -> str:
        return self._stderr.read_text(errors="replace")

    def poll(self) -> int | None:
        """The exit status of the first rank that failed, 0 if all succeeded, None while they run."""
        try:
            return self.wait(0.0)
        except TimeoutError:
            return None

    def wait(self, timeout: float) -> int:
        """Wait until all ranks end. Returns the result of `poll`.

        Raises:
            TimeoutError: if they do not end within `timeout` seconds.
        """
        if self.returncode is None:
            if not select.select([self._connection], [], [], timeout)[0]:
                raise TimeoutError(f"{self._command} runs after {timeout} s:\n{self.stdout}")
            line = self._answers.readline()
            # without an answer the whole group was killed, its supervisor too
            self.returncode = next(filter(None, json.loads(line)), 0) if line else -signal.SIGKILL
        return self.returncode

    def kill(self) -> None:
        """SIGKILL all remaining processes of the job."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.wait(30)
