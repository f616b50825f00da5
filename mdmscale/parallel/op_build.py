"""Builds DeepSpeed's ops where no one waits for ever: said before it starts, and once for an environment.

DeepSpeed compiles an op when it is first used. torch guards the build with a file that the builder creates
and removes, so a killed build leaves the file, and every later start waits for it without a word. Also, one
folder serves all environments of a user, so that two of them rebuild each other's op at every start.

Here a lock of the system, which ends with its process, guards the build. Whoever holds it may tell whether
torch's file is a leftover. And unless TORCH_EXTENSIONS_DIR is set, each environment has its own folder.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mdmscale.system.errors import UserError, first_line

SECONDS_BEFORE_SAYING = 5.0  # that a wait for another process may take
POLL = 0.1
_FOLDER = "TORCH_EXTENSIONS_DIR"
_STAMP = "mdmscale-built-for"
_LOCK = "mdmscale-lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def load_op(builder_name: str, what: str) -> None:
    """Build and load one of DeepSpeed's ops, if this machine's accelerator has it. Then DeepSpeed finds it.

    Args:
        builder_name: DeepSpeed's class, such as ShareMemCommBuilder.
        what: the op in messages.

    Raises:
        UserError: if the op cannot be built.
    """
    import deepspeed

    builder = deepspeed.get_accelerator().create_op_builder(builder_name)
    if builder is None or not builder.is_compatible(verbose=False):
        return
    os.environ.setdefault(_FOLDER, str(own_folder()))
    folder = Path(os.environ[_FOLDER], builder.NAME)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{_FOLDER} = {os.environ[_FOLDER]}: cannot be written: {error.strerror}") from None
    with only_builder(folder, what) as is_certain:
        remove_leftover(folder / "lock", is_certain)
        _build_and_load(builder, folder, what)


def own_folder() -> Path:
    """The folder for ops of this environment on this kind of machine, in the user's cache."""
    name = environment_key()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "mdmscale", "ops", name)
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError:  # such as a home folder that is read-only
        return Path(tempfile.gettempdir(), f"mdmscale-ops-{os.getuid()}", name)
    return cache


def environment_key() -> str:
    """A name for everything that a built op depends on: environment, versions and processor."""
    import deepspeed
    import torch

    facts = (sys.prefix, sys.version, torch.__version__, deepspeed.__version__, _processor())
    digest = hashlib.sha256(repr(facts).encode()).hexdigest()[:12]
    return f"torch{torch.__version__}-deepspeed{deepspeed.__version__}-{digest}"


def _processor() -> str:
    """What this processor can do. DeepSpeed compiles for it, so another may not run the result."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())


def _build_and_load(builder: Any, folder: Path, what: str) -> None:
    stamp, key = folder / _STAMP, environment_key()
    is_built = (folder / f"{builder.NAME}.so").is_file() and stamp.is_file() and stamp.read_text() == key
    if not is_built:
        _say(f"building DeepSpeed's {what}, once for this environment: about a minute ({folder})")
    try:
        with _own_programs():
            builder.load(verbose=False)
    except Exception as error:  # a RuntimeError with the compiler's output, or what importing it raises
        output = folder / "error.txt"
        output.write_text(f"{error}\n")
        raise UserError(
            f"DeepSpeed's {what} cannot be built: {first_line(error)}; it takes ninja, a C++ compiler and "
            f"Python's headers; the compiler's output is in {output}"
        ) from None
    if not is_built:
        stamp.write_text(key)


@contextlib.contextmanager
def _own_programs() -> Iterator[None]:
    """Let torch find this environment's ninja, also where the environment is not activated."""
    before = os.environ.get("PATH", "")
    os.environ["PATH"] = f"{before}{os.pathsep}{Path(sys.executable).parent}"
    try:
        yield
    finally:
        os.environ["PATH"] = before


@contextlib.contextmanager
def only_builder(folder: Path, what: str) -> Iterator[bool]:
    """Wait until no other process builds in `folder`. Yields whether that is sure: some disks have no locks.

    If the wait is long, it says which process builds, unless that is a rank of this job, which has said so.
    """
    try:
        descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror}; set {_FOLDER} to another") from None
    try:
        waiting = _Patience(lambda: _who_builds(descriptor, what))
        while (is_locked := _lock(descriptor)) is False:
            waiting.pause()
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()} {os.getppid()} {platform.node()}".encode(), 0)
        yield bool(is_locked)
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool | None:
    """Whether the lock could be taken; None on a disk without locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return None
    return True


def _who_builds(descriptor: int, what: str) -> str | None:
    process, launcher, host = (*os.pread(descriptor, 200, 0).decode().split(), "?", "?", "?")[:3]
    if (launcher, host) == (str(os.getppid()), platform.node()):
        return None
    return f"waiting for DeepSpeed's {what}, which process {process} on {host} builds"


def remove_leftover(lock: Path, is_only_builder: bool = True) -> None:
    """Remove torch's lock file if its process has ended. While another program builds here, wait for it.

    A builder keeps the file open, and its compilers, which can outlive it, work in the file's folder. Without
    such a process the file is a leftover. Processes of other users cannot be looked into, and those of other
    machines could hold it where a disk has no locks. Then the file stays, and the wait is said.
    """
    waiting = _Patience(
        lambda: f"waiting for a build that holds {lock}; if none is running, delete that file"
    )
    while True:
        try:
            found = lock.stat()
        except FileNotFoundError:
            return
        if is_only_builder and found.st_uid == os.getuid() and not _is_used(found, lock.parent.stat()):
            lock.unlink(missing_ok=True)
            _say(f"removed {lock}: the build that left it has ended")
            return
        waiting.pause()


def _is_used(file: os.stat_result, folder: os.stat_result) -> bool:
    """Whether a process of this user on this machine has the file open or works in the folder.

    True where that cannot be found out.
    """
    processes = Path("/proc")
    if not (processes / "self" / "fd").is_dir():
        return True
    for pattern, used in (("[0-9]*/cwd", folder), ("[0-9]*/fd/*", file)):
        for link in processes.glob(pattern):
            with contextlib.suppress(OSError):  # it has ended, or is another user's
                if os.path.samestat(link.stat(), used):
                    return True
    return False


class _Patience:
    """Pauses between looks, and says once why if they last."""

    def __init__(self, message: Any) -> None:
        self._message = message
        self._until: float | None = time.monotonic() + SECONDS_BEFORE_SAYING

    def pause(self) -> None:
        if self._until is not None and time.monotonic() >= self._until:
            self._until = None
            if (message := self._message()) is not None:
                _say(message)
        time.sleep(POLL)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
