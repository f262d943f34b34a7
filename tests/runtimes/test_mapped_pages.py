"""Pages of files that a session mapped: let go of, and no others."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from edgescribe.runtimes.onnxruntime_decoder_pages import MappedPages


@pytest.mark.skipif(sys.platform != "linux", reason="pages of a mapped file are let go of on Linux")
def test_pages_that_one_session_mapped_are_let_go_of_and_no_others(tmp_path: Path) -> None:
    file = tmp_path / "numbers.bin"
    np.arange(1 << 20, dtype=np.int32).tofile(file)
    other, pages = np.memmap(file, np.int32, "c"), MappedPages()
    with pages.taken(file):
        mapped = np.memmap(file, np.int32, "c")

    def resident(array: np.ndarray) -> int:
        start = array.__array_interface__["data"][0]
        with Path("/proc/self/pagemap").open("rb") as table:
            table.seek(start // os.sysconf("SC_PAGE_SIZE") * 8)
            return sum(int(entry) >> 63 for entry in np.frombuffer(table.read(8 * 1024), np.uint64))

    expected = int(mapped.sum(dtype=np.int64))
    assert int(other.sum(dtype=np.int64)) == expected
    assert resident(mapped) == resident(other) == 1024
    with pages.releasing(60):
        assert int(mapped.sum(dtype=np.int64)) == expected
    assert (resident(mapped), resident(other)) == (0, 1024)
    assert int(mapped.sum(dtype=np.int64)) == expected
