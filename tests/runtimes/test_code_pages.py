"""Start-up code leaves the resident memory, and the engine still runs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgescribe.runtimes.code_pages import code_mappings, release_code
from edgescribe.runtimes.contract import OpenOptions
from edgescribe.runtimes.registry import open_artifact

SMAPS = b"""\
7f0000000000-7f0000001000 r--p 00000000 fe:00 77                         /opt/engine/lib.so
Anonymous:             0 kB
7f0000001000-7f0000005000 r-xp 00001000 fe:00 77                         /opt/engine/lib.so
Rss:                  16 kB
Anonymous:             0 kB
7f0000005000-7f0000006000 rw-p 00005000 fe:00 77                         /opt/engine/lib.so
Anonymous:             4 kB
7f0000010000-7f0000012000 r-xp 00001000 fe:00 78                         /opt/engine/sub/changed.so
Rss:                   8 kB
Anonymous:             4 kB
7f0000020000-7f0000022000 r-xp 00001000 fe:00 79                         /opt/engineer/other.so
Anonymous:             0 kB
7f0000030000-7f0000032000 r-xp 00000000 00:00 0
Anonymous:             0 kB
7f0000040000-7f0000042000 r-xp 00000000 fe:00 80                         /opt/engine/a b.so
Rss:                   8 kB
Anonymous:             0 kB
VmFlags: rd ex mr mw me
"""

PEAK = """
import re, sys
import numpy as np
{opened}
for length in (1, 4, 9, 16, 3, 12):
    run(np.ones((1, length), np.int32))
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024)
"""
OURS = """
from pathlib import Path
from edgescribe.runtimes.contract import OpenOptions
from edgescribe.runtimes.registry import open_artifact
session = open_artifact("litert", Path(sys.argv[1]), OpenOptions(threads=1))
run = lambda row: session.run({"input_ids": row, "attention_mask": row})
"""
ENGINE_ALONE = """
from ai_edge_litert.interpreter import Interpreter
interpreter = Interpreter(model_path=sys.argv[1], num_threads=1)
def run(row):
    bucket = next(size for size in (2, 4, 8, 16) if size >= row.size)
    row = np.pad(row, ((0, 0), (0, bucket - row.size)))
    interpreter.get_signature_runner(f"tokens_{bucket}")(input_ids=row, attention_mask=row)
"""

on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells a process's pages")


def resident_code(folder: Path) -> int:
    """Resident bytes of the code of the libraries in a folder."""
    inside, resident = f"{folder.resolve()}/", 0
    counted = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line[:17]:
            counted = " r-xp " in line and inside in line
        elif counted and line.startswith("Rss:"):
            resident += int(line.split()[1]) * 1024
    return resident


def test_only_unchanged_code_of_the_folder_is_found() -> None:
    found = code_mappings(SMAPS, Path("/opt/engine"))
    assert found == [(0x7F0000001000, 0x4000), (0x7F0000040000, 0x2000)]


@on_linux
def test_released_code_runs_again(write_tflite: Callable[..., Path], tiny: Any, feeds_for: Callable[..., Any]) -> None:
    from ai_edge_litert import interpreter

    folder = Path(interpreter.__file__).parent
    session = open_artifact("litert", write_tflite("float"), OpenOptions(threads=2))
    feeds = feeds_for((3, 11))
    expected = tiny.expected(feeds)["logits"]
    for _ in range(2):
        np.testing.assert_allclose(session.run(feeds)["logits"], expected, atol=2e-5)
        before = resident_code(folder)
        release_code(folder)
        assert resident_code(folder) < before / 2


@on_linux
def test_an_opened_file_leaves_little_of_the_engines_code_in_memory(write_tflite: Callable[..., Path]) -> None:
    from ai_edge_litert import interpreter

    folder = Path(interpreter.__file__).parent
    path = write_tflite("float")
    runner = interpreter.Interpreter(model_path=str(path)).get_signature_runner("tokens_8")
    ones = np.ones((1, 8), np.int32)
    runner(input_ids=ones, attention_mask=ones)
    plain = resident_code(folder)
    session = open_artifact("litert", path, OpenOptions(threads=1))
    assert resident_code(folder) < plain / 2
    session.run({"input_ids": ones, "attention_mask": ones})


@on_linux
def test_a_process_that_runs_all_buckets_stays_below_the_engine_alone(write_tflite: Callable[..., Path]) -> None:
    path = write_tflite("static", buckets=(2, 4, 8, 16))

    def peak(opened: str) -> int:
        command = [sys.executable, "-c", PEAK.replace("{opened}", opened), str(path)]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert peak(ENGINE_ALONE) > 1.02 * peak(OURS)


def test_a_folder_without_libraries_is_no_fault(tmp_path: Path) -> None:
    release_code(tmp_path)
    release_code(tmp_path / "missing")
