"""The device side from the built wheel, a bundle made here, and Debian userlands to run it in."""

from __future__ import annotations

import functools
import gzip
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(Path(__file__).parent))  # tests are no package; these two modules are not tests

from boards import BOARDS  # noqa: E402
from userland import BOOKWORM, TRIXIE, Release, Userland  # noqa: E402

Finished = subprocess.CompletedProcess[str]

TOPICS = ROOT / "samples/debian_topics"
MAX_TOKENS = 128
CALIBRATED, CLASSIFIED = 32, 8
NOT_SOURCE = shutil.ignore_patterns(
    ".*", "build", "dist", "demo", "*.egg-info", "__pycache__", "samples", "tests", "docs"
)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, folder / "checkout", ignore=NOT_SOURCE)
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(folder / "checkout")],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    (built,) = folder.glob("*.whl")
    return built


def make_userland(release: Release, architecture: str, wheel: Path) -> Userland:
    """In the checkout's folder ``.arm``, so that the next run finds what was downloaded."""
    made = Userland(ROOT / ".arm" / f"{release.suite}-{architecture}", release, architecture)
    made.prepare()
    made.install(wheel)
    return made


@pytest.fixture(scope="session")
def userlands(wheel: Path) -> dict[str, Userland]:
    """The arm64 userlands by suite, with every board."""
    with ThreadPoolExecutor() as pool:
        made = list(pool.map(lambda release: make_userland(release, "arm64", wheel), (BOOKWORM, TRIXIE)))
    for userland in made:
        for board in BOARDS:
            userland.add_board(board)
    return {userland.release.suite: userland for userland in made}


@pytest.fixture(scope="session")
def native_userland(wheel: Path) -> Userland:
    """The newest release for x86-64."""
    return make_userland(TRIXIE, "amd64", wheel)


@pytest.fixture(scope="session")
def texts() -> list[str]:
    with gzip.open(TOPICS / "test.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line)["text"] for line in islice(file, CALIBRATED)]


@pytest.fixture(scope="session")
def texts_file(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[:CLASSIFIED]))
    return path


@pytest.fixture(scope="session")
def bundle(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped student in both int8 precisions for all runtimes, calibrated on the texts, not trained further."""
    import torch
    from edgescribe.converters.make_bundle import make_bundle
    from edgescribe.converters.read import read_student
    from edgescribe.converters.torch_graph import TorchGraph
    from edgescribe.converters.training import calibrate
    from edgescribe.converters.training_data import make_examples
    from edgescribe.runtimes.registry import RUNTIMES

    torch.set_num_threads(1)  # on a busy machine more of them wait for each other
    student = read_student(TOPICS / "student", "classify")
    graphs = {}
    for precision in ("w8a8-static", "w8a8-dynamic"):
        graphs[precision] = TorchGraph(student, precision)
        calibrate(graphs[precision], make_examples(student, texts, None, max_tokens=MAX_TOKENS))
    made = make_bundle(
        student, graphs, RUNTIMES, tmp_path_factory.mktemp("bundle") / "topics", texts=texts, source=student, recipe={},
        seed=0, data_sha256={}, max_tokens=MAX_TOKENS,
    )  # fmt: skip
    return made.folder


@pytest.fixture(scope="session")
def arguments(bundle: Path, texts_file: Path) -> Callable[[str, str], list[str]]:
    """``arguments(runtime, precision)``: for a Python that is to classify the texts by the bundle."""

    def make(runtime: str, precision: str) -> list[str]:
        return [
            "-m", "edgescribe", "run", str(bundle), "--input", str(texts_file), "--top-k", "20", "--json",
            "--batch-size", "4", "--threads", "2", "--runtime", runtime, "--precision", precision,
        ]  # fmt: skip

    return make


@pytest.fixture(scope="session")
def here(arguments: Callable[[str, str], list[str]]) -> Callable[[str, str], Finished]:
    """The same program in this environment."""

    @functools.cache
    def compute(runtime: str, precision: str) -> Finished:
        command = [sys.executable, *arguments(runtime, precision)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    return compute


@pytest.fixture(scope="session")
def probabilities() -> Callable[[Finished], np.ndarray]:
    """``probabilities(done)``: float64 ``[texts, labels]``, the labels in the order of their names."""

    def read(done: Finished) -> np.ndarray:
        assert done.returncode == 0, done.stderr
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        return np.array([[score for _, score in sorted(row["scores"].items())] for row in rows])

    return read
