"""Memory of training steps, kept for the next step.

A training step takes and gives back the same large tensors over and over. glibc maps such memory afresh each time, so
that every step pays for the system's handing it out page by page. While memory is kept, it stays with the process;
tensors of ever other sizes leave gaps in it, so it is given up where the machine runs short.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

# Numbers of glibc's malloc.h.
TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4
USUAL_TRIM_THRESHOLD, USUAL_TOP_PAD, USUAL_MMAP_MAX = 128 << 10, 128 << 10, 65536
KEPT_PAD = 64 << 20
"""Bytes by which the heap grows at once."""


SHORT = 0.25
"""Share of the machine's memory; where less than this is available, nothing is kept."""

MEMINFO = Path("/proc/meminfo")


@contextmanager
def memory_kept() -> Iterator[Callable[[], None]]:
    """While it lasts, freed memory stays with the process; what is free goes back to the system after.

    Yields a function to call now and then: it gives everything up where the machine runs short of memory.
    Without effect on a C library other than glibc.
    """
    library = _glibc()
    if library is None:
        yield lambda: None
        return
    tune: Callable[[int, int], int] = library.mallopt
    kept = True

    def give_up() -> None:
        nonlocal kept
        kept = False
        tune(MMAP_MAX, USUAL_MMAP_MAX)
        tune(TRIM_THRESHOLD, USUAL_TRIM_THRESHOLD)
        tune(TOP_PAD, USUAL_TOP_PAD)
        library.malloc_trim(0)

    def give_up_if_short() -> None:
        if kept and _available() < SHORT:
            give_up()

    tune(MMAP_MAX, 0)
    tune(TRIM_THRESHOLD, -1)
    tune(TOP_PAD, KEPT_PAD)
    try:
        yield give_up_if_short
    finally:
        if kept:
            give_up()


def _available() -> float:
    """The share of the machine's memory that can still be had; 1 where the system does not tell."""
    try:
        lines = dict(line.split(":", 1) for line in MEMINFO.read_text(encoding="ascii").splitlines() if ":" in line)
        return int(lines["MemAvailable"].split()[0]) / int(lines["MemTotal"].split()[0])
    except (OSError, KeyError, ValueError):
        return 1.0


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    known = hasattr(library, "gnu_get_libc_version") and hasattr(library, "mallopt") and hasattr(library, "malloc_trim")
    return library if known else None
