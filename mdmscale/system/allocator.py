"""What glibc does with the memory that tensors on the CPU have freed.

By default glibc returns large blocks to the system at once. The logits and activations of the next step are
then new pages, which the system must clear and map. That takes a seventh of a step (docs/performance.md).
With other C libraries these functions do nothing.
"""

import ctypes
from contextlib import suppress

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # mallopt's options, from malloc.h
_NEVER, _NO_MAPS = -1, 0
_MAPS, _LARGE = 65536, 32 << 20  # glibc's limit on maps by default, and its highest automatic threshold


def keep_freed_memory() -> None:
    """Let this process keep the memory that tensors free from now on, for the tensors of the next step."""
    library = glibc()
    if library is not None:
        library.malloc_trim(0)
        library.mallopt(_MMAP_MAX, _NO_MAPS)
        library.mallopt(_TRIM_THRESHOLD, _NEVER)


def return_freed_memory() -> None:
    """Go back to glibc's default, and return the memory that is free now.

    A kept block that lies between used ones keeps its addresses, and later tensors may use it again.
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
