"""A process that imports the trainer once, then forks itself for every job of the tests.

A launch spends many seconds on imports; a fork starts in milliseconds. Still, a fork is a fresh process: it
has no process group, no engine and no state of an earlier job. `workers.forked` starts this server.

A job is a script with arguments on some ranks. A supervisor forks the ranks. When one fails, it ends the
others, as torchrun does. It reports the exit statuses to the test. Supervisor and ranks form one process
group.
"""

import gc
import json
import os
import select
import signal
import socket
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from without_figures import draw_nothing

SECONDS_FOR_OTHERS = 1.0  # that the other ranks have after one has failed
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Rank(NamedTuple):
    """The job of a forked process. `request` comes from `workers.forked`."""

    request: dict[str, Any]
    rank: int
    port: int


def main() -> None:
    listener = socket.socket(fileno=int(sys.argv[1]))
    import_what_ranks_need()
    run(serve(listener))


def import_what_ranks_need() -> None:
    """Import the slow modules. Nothing here may start a thread, because threads do not survive a fork."""
    import datasets  # noqa: F401
    import matplotlib.backends.backend_agg  # noqa: F401
    import peft  # noqa: F401
    import torch
    from deepspeed.accelerator import get_accelerator
    from torch.utils import tensorboard  # noqa: F401
    from transformers import LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM  # noqa: F401

    import mdmscale.training.trainer  # noqa: F401

    torch.set_num_threads(1)
    get_accelerator()
    gc.collect()
    gc.freeze()  # a fork's collections leave these objects alone, whose pages it would have to copy


def serve(listener: socket.socket) -> Rank:
    """Fork a supervisor for each job. Only the ranks return. The server exits when the test process ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no zombies
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:
            os._exit(0)
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            return supervise(connection)
        connection.close()


def supervise(connection: socket.socket) -> Rank:
    """Fork the ranks of a job and report their exit statuses. Only the ranks return."""
    os.setsid()
    with connection.makefile("r") as stream:
        request = json.loads(stream.readline())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pids = []
    for rank in range(request["num_ranks"] or 1):
        pids.append(os.fork())
        if pids[-1] == 0:
            connection.close()
            return Rank(request, rank, port)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # those to the group are for the ranks
    connection.sendall(f"{os.getpid()}\n".encode())
    statuses = wait_for(pids, connection)
    connection.sendall(json.dumps(list(statuses.values())).encode() + b"\n")
    os._exit(0)


def wait_for(pids: list[int], connection: socket.socket) -> dict[int, int]:
    """Wait for the ranks. Returns exit statuses by process, in the order in which the processes end.

    Once a rank has failed, the others are killed after a short time. The test process sends nothing on the
    connection, so if its end closes, the test process has ended and the job ends too.
    """
    statuses: dict[int, int] = {}
    deadline = None
    while len(statuses) < len(pids):
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            statuses[pid] = os.waitstatus_to_exitcode(status)
            if statuses[pid] and deadline is None:
                deadline = time.monotonic() + SECONDS_FOR_OTHERS
            continue
        if deadline is not None and time.monotonic() > deadline:
            for other in set(pids) - statuses.keys():
                os.kill(other, signal.SIGKILL)
            deadline = None
        if select.select([connection], [], [], 0.005)[0]:
            os.killpg(0, signal.SIGKILL)
    return statuses


def run(job: Rank) -> None:
    """Become the job's script, as `python script arguments` under a launcher."""
    import torch

    # A fork leaves torch's thread pool broken until it is asked for. Threads that load weights would race.
    torch.set_num_threads(torch.get_num_threads())
    request = job.request
    stdout, stderr = (os.open(request[name], os.O_WRONLY | os.O_APPEND) for name in ("stdout", "stderr"))
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    if request["num_ranks"]:
        os.environ.update(launcher_environment(job))
        draw_nothing()
    script = Path(request["command"][0])
    sys.argv[:] = request["command"]
    sys.path[0] = str(script.resolve().parent)
    module = ModuleType("__main__")
    module.__file__ = str(script)
    sys.modules["__main__"] = module
    exec(compile(script.read_text(), str(script), "exec"), module.__dict__)


def launcher_environment(job: Rank) -> dict[str, str]:
    """The environment that torchrun gives the ranks of one node."""
    size = str(job.request["num_ranks"])
    return {
        "RANK": str(job.rank),
        "LOCAL_RANK": str(job.rank),
        "WORLD_SIZE": size,
        "LOCAL_WORLD_SIZE": size,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(job.port),
    }


if __name__ == "__main__":
    main()
