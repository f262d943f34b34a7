"""Runtimes that compute wrongly on the machine of the conversion are left out, and that is said."""

from __future__ import annotations

from pathlib import Path

import pytest
from edgescribe.converters.conversion_request import trusted_runtimes
from edgescribe.errors import EngineError

ALL = ("onnxruntime", "openvino", "litert")


def machine(folder: Path, flags: str) -> Path:
    (folder / "proc").mkdir()
    text = f"processor : 0\nvendor_id : GenuineIntel\nmodel name : Some CPU\nflags : lm {flags}\n"
    (folder / "proc/cpuinfo").write_text(text)
    return folder


def test_openvino_in_int8_is_left_out_without_vnni(tmp_path: Path) -> None:
    root, said = machine(tmp_path, "avx2"), list[str]()
    assert trusted_runtimes(ALL, "w8a8-static", said.append, root) == ("onnxruntime", "litert")
    assert "without VNNI" in said[0]
    assert trusted_runtimes(ALL, "fp32", said.append, root) == ALL
    assert len(said) == 1
    with pytest.raises(EngineError, match="take onnxruntime or litert"):
        trusted_runtimes(("openvino",), "w8a8-dynamic", None, root)


def test_all_are_trusted_with_vnni(tmp_path: Path) -> None:
    assert trusted_runtimes(ALL, "w8a8-static", None, machine(tmp_path, "avx2 avx512_vnni")) == ALL
