"""Controls what glibc does with memory that CPU tensors free.

By default glibc returns large blocks to the system at once. The logits and activations of the next step then
need new pages, which the system must clear and map. That takes a seventh of a step (docs/performance.md).
With other C libraries these functions do nothing.
"""

import ctypes
from contextlib import suppress
from pathlib import Path

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # mallopt's options, from malloc.h
_NEVER, _NO_MAPS = -1, 0
_MAPS, _LARGE = 65536, 32 << 20  # glibc's default limit on maps, and its highest automatic threshold
_GROWTH = 1.25  # of a process, before it returns what lies free
_SETTLED = 3  # steps after which a process has all that its steps need


def keep_freed_memory() -> None:
    """Make this process keep memory that tensors free, so the tensors of the next step can reuse it."""
    library = glibc()
    if library is not None:
        library.malloc_trim(0)
        library.mallopt(_MMAP_MAX, _NO_MAPS)
        library.mallopt(_TRIM_THRESHOLD, _NEVER)


class KeptMemory:
    """Bounds what a process keeps: tensors of ever new sizes leave gaps between them that fit no later one.

    So whenever the process has grown by a quarter, it returns all gaps, and the next step maps what it needs.
    """

    def __init__(self) -> None:
        self._needed, self._steps = 0, 0

    def after_step(self) -> bool:
        """Return all gaps if it is time, after a step of training. Whether it was time."""
        held = process_memory("VmRSS") or 0
        if self._steps < _SETTLED:
            self._needed, self._steps = held, self._steps + 1
            return False
        if held <= _GROWTH * self._needed:
            return False
        library = glibc()
        if library is not None:
            library.malloc_trim(0)
        self._steps = 0
        return True


def process_memory(name: str) -> int | None:
    """A value of /proc/self/status in bytes: VmRSS, what this process holds now, or VmHWM, the most it held.

    None where the system has no such file.
    """
    with suppress(OSError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
    return None


def return_freed_memory() -> None:
    """Restore glibc's default, and return the memory that is free now.

    A free block between used blocks keeps its addresses, so later tensors may still reuse it.
    """
    library = glibc()
    if library is not None:
        library.mallopt(_MMAP_MAX, _MAPS)
        library.mallopt(_MMAP_THRESHOLD, _LARGE)
        library.mallopt(_TRIM_THRESHOLD, 2 * _LARGE)
        library.malloc_trim(0)


def glibc() -> ctypes.CDLL | None:
    """This process's C library, or None if it is not glibc."""
    with suppress(OSError):
        library = ctypes.CDLL("libc.so.6")
        return library if hasattr(library, "gnu_get_libc_version") else None
    return None
