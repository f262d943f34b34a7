"""Hands the pages of mapped weight files back to the kernel while an engine packs the weights into its own layout.

An engine that maps a file and packs it reads every page once, and from then on holds the weights twice: packed in its
own memory, and as resident pages of the file that it hardly reads again. Such pages stay in the page cache and are
mapped from there anew when they are read; letting them go only lowers what the process has resident, at its peak too.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import re
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

SECONDS_BETWEEN = 0.01

_MAPPING = re.compile(rb"^([0-9a-f]+)-([0-9a-f]+) r--. \S+ \S+ [1-9]\d* +(/.*)$", re.MULTILINE)


@contextlib.contextmanager
def handing_back(places: Sequence[Path]) -> Iterator[None]:
    """While it lasts, and at its end, let go of resident pages of files, or of those in folders, that are mapped to be
    read alone; without effect off Linux. Safe while other threads read them."""
    wanted = tuple(bytes(place.resolve()) for place in places)
    over = threading.Event()

    def let_go() -> None:
        while not over.wait(SECONDS_BETWEEN):
            _release(wanted)

    thread = threading.Thread(target=let_go, name="mapped weights", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        _release(wanted)


def mappings(maps: bytes, places: Sequence[bytes]) -> list[tuple[int, int]]:
    """Address and size of each read-only mapping, in a process's ``/proc/<pid>/maps``, of a file or of one below a
    folder."""
    return [
        (int(start, 16), int(end, 16) - int(start, 16))
        for start, end, path in _MAPPING.findall(maps)
        if any(path == place or path.startswith(place + b"/") for place in places)
    ]


def _release(places: Sequence[bytes]) -> None:
    with contextlib.suppress(OSError, AttributeError):
        advise = ctypes.CDLL(None).madvise
        advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        for start, size in mappings(Path("/proc/self/maps").read_bytes(), places):
            advise(start, size, mmap.MADV_DONTNEED)  # where it fails, the pages stay
