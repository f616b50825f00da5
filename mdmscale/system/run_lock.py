"""One training at a time in a run folder: a second start is refused and told of the first.

The first holds the lock of `lock`, in which it says who it is. The system releases the lock when its process
ends in any way, so a run that was killed can be continued at once. The file that it leaves says nothing then.
"""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path

from mdmscale.system.errors import UserError
from mdmscale.system.files import made_parents
from mdmscale.system.locks import Busy, locked_file
from mdmscale.system.run_folder import RunFolder


@contextmanager
def only_training(folder: RunFolder) -> Iterator[None]:
    """Within the block no other training can start in `folder`, which is created if it is missing.

    If the block fails, folders created for it are removed again where they are empty.

    Raises:
        UserError: if another training is in progress there; it names host, process and start.
    """
    with made_parents(folder.lock), ExitStack() as held:
        try:
            is_held = held.enter_context(locked_file(folder.lock))
        except Busy:
            raise UserError(
                f"{folder.path}: {_holder(folder.lock)} is training this run; wait until it has ended, "
                f"stop it (touch {folder.stop}), or choose another run.name"
            ) from None
        held.callback(folder.lock.unlink, missing_ok=True)  # while the lock is still held
        _say_who(folder.lock)
        if not is_held:
            print(
                f"warning: {folder.path} is on a file system without locks, so a second start in this folder "
                "would go unnoticed",
                flush=True,
            )
        yield


def _say_who(lock: Path) -> None:
    try:
        lock.write_text(json.dumps(_this_process()) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{lock}: cannot be written: {error.strerror}") from None


def _this_process() -> dict[str, str | int]:
    job = os.environ.get("SLURM_JOB_ID")
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now().astimezone().isoformat(" ", "seconds"),
        **({"job": job} if job else {}),
    }


def _holder(lock: Path) -> str:
    """Who holds the lock, in words."""
    try:
        who = json.loads(lock.read_text(encoding="utf-8"))
        job = f" (SLURM job {who['job']})" if "job" in who else ""
        return f"process {who['pid']} on {who['host']}{job}, since {who['since']},"
    except (OSError, ValueError, KeyError, TypeError):  # it has not written it yet
        return "another process"
