"""Memory of training steps, kept for the next step.

A training step takes and gives back the same large tensors over and over. glibc maps such memory afresh each time, so
that every step pays for the system's handing it out page by page: more than half of a step's time for a small
student with a large vocabulary. While memory is kept, it stays with the process.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Numbers of glibc's malloc.h.
TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4
USUAL_TRIM_THRESHOLD, USUAL_TOP_PAD, USUAL_MMAP_MAX = 128 << 10, 128 << 10, 65536
KEPT_PAD = 64 << 20
"""Bytes by which the heap grows at once."""


@contextmanager
def memory_kept() -> Iterator[None]:
    """While it lasts, freed memory stays with the process; what is free goes back to the system after.

    Without effect on a C library other than glibc.
    """
    library = _glibc()
    if library is None:
        yield
        return
    tune: Callable[[int, int], int] = library.mallopt
    tune(MMAP_MAX, 0)
    tune(TRIM_THRESHOLD, -1)
    tune(TOP_PAD, KEPT_PAD)
    try:
        yield
    finally:
        tune(MMAP_MAX, USUAL_MMAP_MAX)
        tune(TRIM_THRESHOLD, USUAL_TRIM_THRESHOLD)
        tune(TOP_PAD, USUAL_TOP_PAD)
        library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    known = hasattr(library, "gnu_get_libc_version") and hasattr(library, "mallopt") and hasattr(library, "malloc_trim")
    return library if known else None
