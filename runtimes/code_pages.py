"""Hands pages of an engine's machine code back to the kernel once start-up is over.

An engine's libraries are mapped, and what of them was ever run stays in the process's resident memory: for the
greater part code that registers operators and packs weights, never to be run again. The kernel takes such pages
when memory gets short; this tells it at once. They stay in the page cache, and code that does run again is mapped
from there, 16 pages at a time, without reading a disk.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import re
from pathlib import Path

# A mapping of code, and lines of what is known of it up to the pages that are no longer the file's.
_CODE = re.compile(
    rb"^([0-9a-f]+)-([0-9a-f]+) r-xp \S+ \S+ [1-9]\d* +(/.*)\n(?:[A-Z].*\n)*?Anonymous: +(\d+) kB$", re.MULTILINE
)


def release_code(folder: Path) -> None:
    """Let go of the resident code of the libraries in a folder and the folders in it; without effect off Linux.

    Safe while other threads run that code. Libraries whose code was changed in memory, by a debugger for one, are
    left alone, for the change would be lost.
    """
    with contextlib.suppress(OSError, AttributeError):
        advise = ctypes.CDLL(None).madvise
        advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        for start, size in code_mappings(Path("/proc/self/smaps").read_bytes(), folder.resolve()):
            advise(start, size, mmap.MADV_DONTNEED)  # where it fails, the pages stay


def code_mappings(smaps: bytes, folder: Path) -> list[tuple[int, int]]:
    """Address and size of each mapping, in a process's ``/proc/<pid>/smaps``, of unchanged code below ``folder``."""
    found = []
    for start, end, path, changed in _CODE.findall(smaps):
        if path.startswith(bytes(folder) + b"/") and int(changed) == 0:
            found.append((int(start, 16), int(end, 16) - int(start, 16)))
    return found
