"""Under emulation of each Raspberry Pi's core, the device side works and answers as it does here."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from boards import BOARDS, Board

pytestmark = pytest.mark.arm

RUNTIMES = ("onnxruntime", "openvino", "litert")
PRECISIONS = ("w8a8-static", "w8a8-dynamic")
JOBS = [
    (board, runtime, precision)
    for board in BOARDS
    for runtime in RUNTIMES
    for precision in PRECISIONS
    # The kernels for Cortex-A72 are those for Cortex-A53, bit for bit: once is enough for the second precision.
    if board.core != "Cortex-A72" or precision == "w8a8-static"
]

# Processors round in other places, and one step of an activation's grid moves every later layer: seen are up to 0.017
# (OpenVINO, static) and 0.005 (the others). One label in eight may tip over.
PROBABILITY = 0.05
SAME_LABEL = 7 / 8

Finished = subprocess.CompletedProcess[str]


@pytest.fixture(scope="session")
def arguments(bundle: Path, texts_file: Path) -> Callable[[str, str], list[str]]:
    def make(runtime: str, precision: str) -> list[str]:
        return [
            "-m", "edgescribe", "run", str(bundle), "--input", str(texts_file), "--top-k", "20", "--json",
            "--batch-size", "4", "--threads", "2", "--runtime", runtime, "--precision", precision,
        ]  # fmt: skip

    return make


@pytest.fixture(scope="session")
def runs(userland: Any, arguments: Callable[[str, str], list[str]]) -> Any:
    """All programs that the tests look at, two at a time, by board and what they do."""
    started: dict[tuple[str, str, str], Future[Finished]] = {}
    with ThreadPoolExecutor(2) as pool:
        for board, runtime, precision in JOBS:
            key = (board.emulated, runtime, precision)
            started[key] = pool.submit(userland.python, board, arguments(runtime, precision))
        for board in BOARDS:
            doctor = ["-m", "edgescribe", "doctor", "--json"]
            started[board.emulated, "doctor", ""] = pool.submit(userland.python, board, doctor)
        yield lambda *key: started[key].result()


@pytest.fixture(scope="session")
def here(arguments: Callable[[str, str], list[str]]) -> Callable[[str, str], Finished]:
    """The same program on this machine."""

    @functools.cache
    def compute(runtime: str, precision: str) -> Finished:
        command = [sys.executable, *arguments(runtime, precision)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    return compute


def probabilities(done: Finished) -> np.ndarray:
    """Float64 ``[texts, labels]``, the labels in the order of their names."""
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return np.array([[score for _, score in sorted(row["scores"].items())] for row in rows])


@pytest.mark.parametrize(
    ("board", "runtime", "precision"), JOBS, ids=[f"{b.emulated}-{runtime}-{p}" for b, runtime, p in JOBS]
)
def test_answers_are_those_of_this_machine(
    board: Board, runs: Any, here: Callable[[str, str], Finished], runtime: str, precision: str
) -> None:
    done, done_here = runs(board.emulated, runtime, precision), here(runtime, precision)
    there, expected = probabilities(done), probabilities(done_here)
    assert there.shape == expected.shape
    assert len(there) > 0
    off = np.abs(there - expected).max()
    same = (there.argmax(axis=1) == expected.argmax(axis=1)).mean()
    print(f"{board.emulated} {runtime} {precision}: off by {off:.4f}, {same:.0%} of the labels the same")
    assert off <= PROBABILITY
    assert same >= SAME_LABEL
    assert done.stderr == done_here.stderr  # which runtime, version and threads; nothing of the engine's


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.emulated)
def test_doctor_names_the_board(board: Board, runs: Any) -> None:
    done = runs(board.emulated, "doctor", "")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    machine = report["machine"]
    assert machine["isa"] == "aarch64"
    assert machine["model"] == board.model
    (cluster,) = machine["clusters"].values()
    assert (cluster["core"], cluster["count"], cluster["max_mhz"]) == (board.core, 4, board.khz // 1000)
    assert ("asimddp" in cluster["features"]) == board.has_dot_product
    assert {found["runtime"] for found in report["runtimes"] if found["available"]} == set(RUNTIMES)
