"""What training keeps of memory goes back to the system afterwards."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the memory of glibc, on Linux")

SIZE = 64 << 20


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def faults_of_steps(steps: int) -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(steps):
        torch.ones(SIZE // 4)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def alone(program: str, *arguments: object) -> list[float]:
    """What a program prints that begins as this file does, in a process of its own.

    What tests before have freed may hold all that is asked for, and then nothing is mapped anew.
    """
    begin = "import sys; sys.path.insert(0, sys.argv[1]); from test_kept_memory import *\n"
    begin += "from edgescribe.converters import kept_memory; memory_kept = kept_memory.memory_kept\n"
    command = [sys.executable, "-c", begin + program, str(Path(__file__).parent), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [float(word) for word in done.stdout.split()]


ONCE = """
faults_of_steps(1)
before, mapped_anew = resident(), faults_of_steps(4)
with memory_kept():
    faults_of_steps(8)
    kept = faults_of_steps(40)  # many: once in a while a small block lies in the way and the heap grows by one more
print(mapped_anew / 4, kept / 40, (resident() - before) / SIZE)
"""

SHORT = """
kept_memory.MEMINFO = Path(sys.argv[2])
faults_of_steps(1)
before = resident()
with memory_kept() as give_up_if_short:
    for available in (6000, 3000):
        kept_memory.MEMINFO.write_text(f"MemTotal: 16000 kB\\nMemAvailable: {available} kB\\n")
        faults_of_steps(8)
        give_up_if_short()
        print((resident() - before) / SIZE)
"""


def test_memory_is_taken_once_and_given_back() -> None:
    mapped_anew, kept, left = alone(ONCE)
    assert mapped_anew > 10
    assert kept < mapped_anew / 10
    assert left < 0.25


def test_a_machine_that_runs_short_gets_it_back(tmp_path: Path) -> None:
    enough, short = alone(SHORT, tmp_path / "meminfo")
    assert short < 0.25 < enough
