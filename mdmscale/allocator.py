"""What glibc does with memory that tensors on the CPU have given back.

By default it returns large blocks to the system at once, and the logits and activations of each step are new
pages that the system must clear and map: a seventh of a step (docs/performance.md). With other C libraries
nothing here does anything.
"""

import ctypes
from contextlib import suppress

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # mallopt's names for them, in malloc.h
_NEVER, _DEFAULT_TRIM = -1, 128 * 1024
_NO_MAPS, _DEFAULT_MAPS = 0, 65536


def keep_freed_memory() -> None:
    """Let this process keep what tensors free, for those of the next step."""
    library = glibc()
    if library is not None:
        library.mallopt(_MMAP_MAX, _NO_MAPS)
        library.mallopt(_TRIM_THRESHOLD, _NEVER)


def return_freed_memory() -> None:
    """Return it, now and from now on, so that the process is as large as its tensors."""
    library = glibc()
    if library is not None:
        library.mallopt(_MMAP_MAX, _DEFAULT_MAPS)
        library.mallopt(_TRIM_THRESHOLD, _DEFAULT_TRIM)
        library.malloc_trim(0)


def glibc() -> ctypes.CDLL | None:
    """This process's C library, if it is glibc."""
    with suppress(OSError):
        library = ctypes.CDLL("libc.so.6")
        return library if hasattr(library, "gnu_get_libc_version") else None
    return None
