"""Memory that is given back to the system, as the system tells of it."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import pytest
from edgescribe.runtimes.spare_memory import mapped_at, release_freed, release_pages

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")


def resident(kind: str) -> int:
    """kB of this process's memory of one kind."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{kind}:"))


def test_pages_of_a_mapped_file_leave_and_are_read_again(tmp_path: Path) -> None:
    path = tmp_path / "weights with a space.bin"
    path.write_bytes(bytes(range(256)) * (4 << 12))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        before = resident("RssFile")
        total = sum(mapped[::4096])
        assert resident("RssFile") - before > 3 << 10
        places = mapped_at(path)
        assert sum(size for _, size in places) == 4 << 20
        release_pages(places)
        assert resident("RssFile") - before < 1 << 10
        assert sum(mapped[::4096]) == total
    assert mapped_at(path) == []


def test_a_file_that_is_not_mapped_has_no_places(tmp_path: Path) -> None:
    assert mapped_at(tmp_path / "missing") == []
    release_pages([])


def test_freed_memory_is_given_back() -> None:
    # Pieces small enough for the heap, the last of which keeps the rest from being given back by itself.
    pieces = [bytearray(50_000) for _ in range(1000)]
    kept = pieces[-1]
    before = resident("RssAnon")
    del pieces
    release_freed()
    assert before - resident("RssAnon") > 20_000
    assert len(kept) == 50_000
