"""What OpenVINO's adapter keeps out of memory, and that it is there for who needs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from edgescribe.runtimes.contract import OpenOptions
from edgescribe.runtimes.registry import open_artifact

CONVERTER_STAYS_OUT = """
import sys
from pathlib import Path
from edgescribe.runtimes.contract import OpenOptions
from edgescribe.runtimes.openvino import engine
from edgescribe.runtimes.registry import open_artifact
for _ in range(2):
    open_artifact("openvino", Path(sys.argv[1]), OpenOptions(threads=1)).close()
loaded = {"openvino.tools.ovc", "openvino.frontend.tensorflow", "openvino_telemetry"} & set(sys.modules)
assert not loaded, loaded
import openvino
assert engine() is openvino and not hasattr(openvino, "no_such_name")
"""
CONVERTER_COMES_WHEN_ASKED = CONVERTER_STAYS_OUT + """
from openvino import convert_model
model = openvino.convert_model(sys.argv[2])
assert len(model.inputs) == 2
assert convert_model is openvino.convert_model
"""
IMPORTED_BEFORE = """
import openvino
from edgescribe.runtimes.openvino import engine
assert engine() is openvino and "convert_model" in vars(openvino) and "__getattr__" not in vars(openvino)
"""


@pytest.mark.parametrize("program", [CONVERTER_STAYS_OUT, CONVERTER_COMES_WHEN_ASKED, IMPORTED_BEFORE])
def test_the_converter_is_imported_for_who_asks_for_it(openvino_file: Path, onnx_file: Path, program: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", program, str(openvino_file), str(onnx_file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells a process's pages")
def test_an_opened_file_leaves_little_of_the_engines_code_in_memory(openvino_file: Path) -> None:
    import openvino

    folder = Path(openvino.__file__).parent
    ones = np.ones((1, 8), np.int32)
    openvino.Core().compile_model(str(openvino_file), "CPU")([ones, ones])
    plain = resident_code(folder)
    session = open_artifact("openvino", openvino_file, OpenOptions(threads=1))
    assert resident_code(folder) < plain / 2
    session.run({"input_ids": ones, "attention_mask": ones})


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
