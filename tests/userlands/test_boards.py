"""Under emulation of each Raspberry Pi's core, the device side works and answers as it does here.

On Debian bookworm with Python 3.11, and on trixie with Python 3.13 on the newest board.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from boards import BOARDS, Board
from userland import BOOKWORM, TRIXIE

pytestmark = pytest.mark.arm

RUNTIMES = ("onnxruntime", "openvino", "litert")
PRECISIONS = ("w8a8-static", "w8a8-dynamic")
JOBS = [
    (BOOKWORM.suite, board, runtime, precision)
    for board in BOARDS
    for runtime in RUNTIMES
    for precision in PRECISIONS
    # The kernels for Cortex-A72 are those for Cortex-A53, bit for bit: once is enough for the second precision.
    if board.core != "Cortex-A72" or precision == "w8a8-static"
] + [(TRIXIE.suite, BOARDS[-1], runtime, "w8a8-static") for runtime in RUNTIMES]
DOCTORS = [(BOOKWORM.suite, board) for board in BOARDS] + [(TRIXIE.suite, BOARDS[-1])]

# Processors round in other places, and one step of an activation's grid moves every later layer: seen are up to 0.017
# (OpenVINO, static) and 0.005 (the others). One label in eight may tip over.
PROBABILITY = 0.05
SAME_LABEL = 7 / 8

Finished = subprocess.CompletedProcess[str]


@pytest.fixture(scope="session")
def runs(userlands: Any, arguments: Callable[[str, str], list[str]]) -> Any:
    """All programs that the tests look at, two at a time, by suite, board and what they do."""
    started: dict[tuple[str, str, str, str], Future[Finished]] = {}
    with ThreadPoolExecutor(2) as pool:
        for suite, board, runtime, precision in JOBS:
            key = (suite, board.emulated, runtime, precision)
            started[key] = pool.submit(userlands[suite].python, board, arguments(runtime, precision))
        for suite, board in DOCTORS:
            doctor = ["-m", "edgescribe", "doctor", "--json"]
            started[suite, board.emulated, "doctor", ""] = pool.submit(userlands[suite].python, board, doctor)
        yield lambda *key: started[key].result()


@pytest.mark.parametrize(
    ("suite", "board", "runtime", "precision"),
    JOBS,
    ids=[f"{suite}-{board.emulated}-{runtime}-{precision}" for suite, board, runtime, precision in JOBS],
)
def test_answers_are_those_of_this_machine(
    suite: str,
    board: Board,
    runtime: str,
    precision: str,
    runs: Any,
    here: Callable[[str, str], Finished],
    probabilities: Callable[[Finished], np.ndarray],
) -> None:
    done, done_here = runs(suite, board.emulated, runtime, precision), here(runtime, precision)
    there, expected = probabilities(done), probabilities(done_here)
    assert there.shape == expected.shape
    assert len(there) > 0
    off = np.abs(there - expected).max()
    same = (there.argmax(axis=1) == expected.argmax(axis=1)).mean()
    print(f"{suite} {board.emulated} {runtime} {precision}: off by {off:.4f}, {same:.0%} of the labels the same")
    assert off <= PROBABILITY
    assert same >= SAME_LABEL
    assert done.stderr == done_here.stderr  # which runtime, version and threads; nothing of the engine's


@pytest.mark.parametrize(("suite", "board"), DOCTORS, ids=[f"{suite}-{board.emulated}" for suite, board in DOCTORS])
def test_doctor_names_the_board(suite: str, board: Board, runs: Any) -> None:
    done = runs(suite, board.emulated, "doctor", "")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    machine = report["machine"]
    assert machine["isa"] == "aarch64"
    assert machine["model"] == board.model
    (cluster,) = machine["clusters"].values()
    assert (cluster["core"], cluster["count"], cluster["max_mhz"]) == (board.core, 4, board.khz // 1000)
    assert ("asimddp" in cluster["features"]) == board.has_dot_product
    assert {found["runtime"] for found in report["runtimes"] if found["available"]} == set(RUNTIMES)
