"""What becomes of the memory that a training frees after each step."""

from __future__ import annotations

import ctypes
import sys

# mallopt(3)
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_NEVER = -1
_LARGEST = 2**25  # bytes; the most that glibc takes


def keep_freed_memory() -> None:
    """Let this process keep what it frees, up to 32 MiB a piece, until it ends.

    A step asks for the same memory again. By default glibc gives it back to the system in between, which clears it and
    maps it anew, page by page: of a small network on one thread that was a quarter of a step. Nothing is done where the
    C library is another one.
    """
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(_M_TRIM_THRESHOLD, _NEVER)
        library.mallopt(_M_MMAP_THRESHOLD, _LARGEST)
