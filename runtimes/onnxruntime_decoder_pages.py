"""Gives back the memory of weights that the engine read once, to make its own packed copy of them."""

from __future__ import annotations

import ctypes
import functools
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_DONT_NEED = 4
_TAKING = threading.Lock()


class MappedPages:
    """The mappings of a file that an engine's sessions make; whoever keeps these may let go of the pages at any time.

    Linux alone has them; elsewhere nothing happens.
    """

    def __init__(self) -> None:
        self._regions: list[tuple[int, int]] = []

    @contextmanager
    def taken(self, file: Path) -> Iterator[None]:
        """Remember the mappings of ``file`` that are made meanwhile and not written to."""
        # Another session's may be gone one day, and other memory be at their place.
        with _TAKING:
            others = [(start, start + size) for start, size, _ in _regions(file)]
            yield
            self._regions = [
                (start, size)
                for start, size, _ in _regions(file)
                if not any(start < end and first < start + size for first, end in others)
            ]

    def release(self) -> None:
        """Let go of their pages that lie in memory."""
        if self._regions:
            advise = _advise()
            for start, size in self._regions:
                advise(start, size, _DONT_NEED)

    @contextmanager
    def releasing(self, every: float) -> Iterator[None]:
        """Let go of their pages again and again, every so many seconds, while something reads through the file."""
        done = threading.Event()

        def release_until_done() -> None:
            while not done.wait(every):
                self.release()

        thread = threading.Thread(target=release_until_done, name="mapped pages", daemon=True)
        if self._regions:
            thread.start()
        try:
            yield
        finally:
            done.set()
            if self._regions:
                thread.join()
            self.release()


@functools.cache
def _advise() -> Any:
    """The system's ``madvise(address, size, advice)``, which gives 0 where it did as told."""
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return advise


def _regions(file: Path) -> list[tuple[int, int, int]]:
    """Address, size and resident bytes of each mapping of ``file`` without a page written to."""
    if sys.platform != "linux":
        return []
    try:
        _advise()
        return _clean_regions(str(file.resolve()), Path("/proc/self/smaps").read_text(errors="replace"))
    except (OSError, AttributeError, ValueError):
        return []


def _clean_regions(file: str, smaps: str) -> list[tuple[int, int, int]]:
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
            if int(rest.split()[0]) == 0:
                found.append((start, end - start, resident))
            inside = False
    return found
