"""Gives memory back to the system that a long-lived engine holds and does not need at the moment.

Without effect where the C library or the system offers no such thing.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import re
from pathlib import Path

_LINE = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) r--[ps] \S+ \S+ \d+ +(/.*)$", re.MULTILINE)


def mapped_at(file: Path) -> list[tuple[int, int]]:
    """Address and size of each part of a file that this process has mapped for reading alone."""
    try:
        maps = Path("/proc/self/maps").read_text(errors="surrogateescape")
    except OSError:
        return []
    wanted = str(file.resolve())
    return [(int(a, 16), int(b, 16) - int(a, 16)) for a, b, path in _LINE.findall(maps) if path == wanted]


def release_pages(mappings: list[tuple[int, int]]) -> None:
    """Let go of the resident pages of read-only file mappings; what is read again comes from the page cache."""
    with contextlib.suppress(OSError, AttributeError):
        advise = ctypes.CDLL(None).madvise
        advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        for start, size in mappings:
            advise(start, size, mmap.MADV_DONTNEED)


def release_freed() -> None:
    """Give freed heap memory back, which the C library otherwise keeps for later."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
