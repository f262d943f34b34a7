"""What a process that reads many sources in OpenVINO takes: no more for sources of many lengths than of a few."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

MOST_GROWTH_MB = 25
"""Where kernels were kept for each length of a source, these 80 took some 100 MB."""

MANY_SOURCES = """
import sys
from pathlib import Path
import numpy as np
from edgescribe.runtimes.encoder_decoder_contract import EncoderDecoderOptions
from edgescribe.runtimes.registry import open_encoder_decoder

def resident():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024

drawn = np.random.default_rng(0)
session = open_encoder_decoder("openvino", Path(sys.argv[1]), EncoderDecoderOptions(threads=1))

def write(length):
    session.read(drawn.integers(0, 97, length))
    session.prefill([0])
    while session.length < 40:
        session.verify(drawn.integers(0, 97, int(drawn.integers(2, 9))))
        session.step(1)

for length in (200, 1, 40, 100, 150, 200, 30, 64):
    write(length)
before = resident()
for length in drawn.permutation(np.arange(21, 181, 2)):
    write(int(length))
print(resident() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell a process's memory")
def test_many_sources_of_many_lengths_take_what_a_few_take(written: Callable[[str, str], Any]) -> None:
    path = written("openvino", "w8a8-dynamic").path
    ran = subprocess.run([sys.executable, "-c", MANY_SOURCES, str(path)], capture_output=True, text=True, check=True)
    assert float(ran.stdout) < MOST_GROWTH_MB
