"""What glibc does with memory that tensors on the CPU have given back.

By default it returns large blocks to the system at once, and the logits and activations of each step are new
pages that the system must clear and map: a seventh of a step (docs/performance.md). With other C libraries
nothing here does anything.
"""

import ctypes
from contextlib import suppress

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # mallopt's names for them, in malloc.h
_NEVER, _NO_MAPS = -1, 0
_MAPS, _LARGE = 65536, 32 << 20  # glibc's number of maps, and the highest threshold that it chooses for them


def keep_freed_memory() -> None:
    """Let this process keep what tensors free from now on, for those of the next step."""
    library = glibc()
    if library is not None:
        library.malloc_trim(0)
        library.mallopt(_MMAP_MAX, _NO_MAPS)
        library.mallopt(_TRIM_THRESHOLD, _NEVER)


def return_freed_memory() -> None:
    """Let this process do again what glibc does by default, and return what is free at this moment.

    Where a block that was kept lies between others, its addresses stay, and later tensors may use it again.
    """
    library = glibc()
    if library is not None:
        library.mallopt(_MMAP_MAX, _MAPS)
        library.mallopt(_MMAP_THRESHOLD, _LARGE)
        library.mallopt(_TRIM_THRESHOLD, 2 * _LARGE)
        library.malloc_trim(0)


def glibc() -> ctypes.CDLL | None:
    """This process's C library, if it is glibc."""
    with suppress(OSError):
        library = ctypes.CDLL("libc.so.6")
        return library if hasattr(library, "gnu_get_libc_version") else None
    return None
