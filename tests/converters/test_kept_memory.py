"""What training keeps of memory goes back to the system afterwards."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import pytest
import torch
from edgescribe.converters import kept_memory
from edgescribe.converters.kept_memory import memory_kept

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the memory of glibc, on Linux")

SIZE = 64 << 20


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def faults_of_steps(steps: int) -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(steps):
        torch.ones(SIZE // 4)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_memory_is_taken_once_and_given_back() -> None:
    faults_of_steps(1)
    before = resident()
    mapped_anew = faults_of_steps(4)
    with memory_kept():
        faults_of_steps(8)
        assert faults_of_steps(4) < mapped_anew / 10
    assert resident() < before + SIZE / 4


def test_a_machine_that_runs_short_gets_it_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_memory, "MEMINFO", tmp_path / "meminfo")
    before = resident()
    with memory_kept() as give_up_if_short:
        for available, has_it_back in ((6000, False), (3000, True)):
            (tmp_path / "meminfo").write_text(f"MemTotal: 16000 kB\nMemAvailable: {available} kB\n")
            faults_of_steps(8)
            give_up_if_short()
            assert (resident() < before + SIZE / 4) == has_it_back
