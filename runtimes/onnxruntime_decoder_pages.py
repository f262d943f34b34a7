"""Gives back the memory of weights that the engine read once, to make its own packed copy of them."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

_DONT_NEED = 4


def release_read_pages(file: Path) -> int:
    """Let go of a mapped file's pages that lie in this process's memory; how many bytes that were.

    A page that is read again comes back from the file, so nothing is lost; mappings that were written to are left
    alone. Where the system cannot do that (other than Linux), nothing happens.
    """
    if sys.platform != "linux":
        return 0
    try:
        regions = _clean_regions(str(file.resolve()), Path("/proc/self/smaps").read_text(errors="replace"))
        advise = ctypes.CDLL(None).madvise
    except (OSError, AttributeError, ValueError):
        return 0
    advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return sum(resident for start, size, resident in regions if advise(start, size, _DONT_NEED) == 0)


def _clean_regions(file: str, smaps: str) -> list[tuple[int, int, int]]:
    """Address, size and resident bytes of each mapping of ``file`` without a page written to."""
    found: list[tuple[int, int, int]] = []
    start = end = resident = 0
    inside = False
    for line in smaps.splitlines():
        name, _, rest = line.partition(":")
        if "-" in name.split(" ")[0]:
            bounds = line.split(maxsplit=5)
            inside = len(bounds) == 6 and bounds[5] == file
            if inside:
                first, _, last = bounds[0].partition("-")
                start, end, resident = int(first, 16), int(last, 16), 0
        elif inside and name == "Rss":
            resident = int(rest.split()[0]) * 1024
        elif inside and name == "Anonymous":
            if int(rest.split()[0]) == 0 and resident:
                found.append((start, end - start, resident))
            inside = False
    return found
