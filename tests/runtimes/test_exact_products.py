"""ONNX Runtime is told to multiply exactly where this CPU's quick int8 kernels saturate."""

from __future__ import annotations

from pathlib import Path

import pytest
from edgescribe.runtimes.onnxruntime import products_saturate


@pytest.mark.parametrize(
    ("cpuinfo", "saturates"),
    [
        ("vendor_id : GenuineIntel\nmodel name : Haswell\nflags : lm fpu avx avx2 fma\n", True),
        ("vendor_id : GenuineIntel\nmodel name : Skylake\nflags : lm avx2 avx512f avx512bw\n", True),
        ("vendor_id : GenuineIntel\nmodel name : Ice Lake\nflags : lm avx2 avx512f avx512_vnni\n", False),
        ("vendor_id : GenuineIntel\nmodel name : N100\nflags : lm avx2 avx_vnni\n", False),
        ("Features : fp asimd crc32\nCPU implementer : 0x41\nCPU part : 0xd03\n", False),
    ],
)
def test_exact_kernels_are_asked_for_without_vnni(tmp_path: Path, cpuinfo: str, saturates: bool) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("processor : 0\n" + cpuinfo)
    assert products_saturate(tmp_path) is saturates
