"""A tiny T5 with a deep encoder, written for each engine, opened, and held against torch.

A runtime joins by a line in ENGINES: who writes its artifact, under which name, and what runs of other sizes do to
its bits.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from edgescribe.converters.families.t5_layers import settle
from edgescribe.converters.freeze import freeze
from edgescribe.converters.student import Student
from edgescribe.converters.torch_decoder import graph_of
from edgescribe.runtimes.encoder_decoder_contract import EncoderDecoderOptions
from edgescribe.runtimes.registry import encoder_decoder_runtime

VOCABULARY, SOURCE, TARGET = 97, 200, 150
SIZES = {
    "vocab_size": VOCABULARY, "d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 3, "num_decoder_layers": 2,
    "num_heads": 4, "feed_forward_proj": "gated-gelu", "relative_attention_max_distance": 40,
    "decoder_start_token_id": 0,
}  # fmt: skip
PRECISIONS = ("fp32", "w8a8-dynamic", "w4a8-dynamic")
TOLERANCES = {"fp32": 1e-4, "w8a8-dynamic": 0.2, "w4a8-dynamic": 0.3}
"""Largest difference from torch in logits of deviation about 1: engines round activations in blocks of their own."""

SPREADS = {"fp32": 1e-5, "w8a8-dynamic": 0.1, "w4a8-dynamic": 0.1}
"""Largest root of the mean squared difference, in deviations of the logits."""


@dataclass(frozen=True)
class Engine:
    """A runtime: who writes its artifact, under which name, and what of it is the same bit for bit.

    ``exact`` is the precision whose logits hang least on how many tokens a run has: not at all if ``bitwise``.
    ``alike`` says of a precision and a number of threads whether tokens alone get the bits that they get among others;
    None: the session knows.
    """

    module: str
    function: str
    file: str
    effective: tuple[str, str]
    exact: str
    bitwise: bool
    alike: Callable[[str, int], bool | None]


ENGINES = {
    "onnxruntime": Engine(
        "onnx_encoder_decoder", "export_onnx_encoder_decoder", "writer.onnx", ("onnxruntime", "CPUExecutionProvider"),
        "w8a8-dynamic", True, lambda precision, threads: precision != "fp32",
    ),
    "litert": Engine(
        "litert_encoder_decoder", "export_litert_encoder_decoder", "writer.tflite", ("ai_edge_litert", "XNNPACK"),
        "w8a8-dynamic", True, lambda precision, threads: True,
    ),
    "openvino": Engine(
        "openvino_encoder_decoder", "export_openvino_encoder_decoder", "writer.xml", ("openvino", "CPU"),
        "fp32", False, lambda precision, threads: True if (precision, threads) == ("fp32", 1) else None,
    ),
}  # fmt: skip


class Artifact:
    """A file of one runtime and precision, how it is opened, and its reference in torch."""

    def __init__(self, runtime: str, precision: str, path: Path, graph: Any) -> None:
        self.runtime, self.precision, self.path, self.graph = runtime, precision, path, graph
        self.engine, self.adapter = ENGINES[runtime], encoder_decoder_runtime(runtime)

    def open(self, path: Path | None = None, **options: Any) -> Any:
        """A session of one thread if nothing else is said, on this file or another one."""
        return self.adapter.open_encoder_decoder(path or self.path, EncoderDecoderOptions(**{"threads": 1, **options}))

    def logits(self, source: np.ndarray, target: np.ndarray) -> np.ndarray:
        """What torch gives, float32 ``[target tokens, vocabulary]``."""
        feeds = {"source_ids": source, "input_ids": np.asarray(target)}
        with torch.no_grad():
            found = self.graph.run({name: torch.from_numpy(ids[None].astype(np.int64)) for name, ids in feeds.items()})
        return found["logits"][0].numpy()

    @property
    def tolerance(self) -> float:
        return TOLERANCES[self.precision]

    def assert_near(self, got: np.ndarray, expected: np.ndarray) -> None:
        """Float32 differs in its last digits alone; rounded activations at times round the other way."""
        np.testing.assert_allclose(got, expected, atol=self.tolerance, rtol=0)
        assert np.sqrt(np.square(got - expected).mean()) < SPREADS[self.precision] * expected.std()

    def assert_same(self, got: np.ndarray, expected: np.ndarray) -> None:
        """Of two roads to the same text, in the engine's exact precision."""
        assert self.precision == self.engine.exact
        np.testing.assert_allclose(got, expected, atol=0 if self.engine.bitwise else 1e-5, rtol=0)


def random_student(**sizes: int) -> Student:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(**{**SIZES, **sizes})
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = T5ForConditionalGeneration(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "relative" in name:
                    parameter.normal_()
                elif "shared" not in name:
                    parameter.add_(torch.randn_like(parameter) * 0.05)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fields, tensors = settle(json.loads(config.to_json_string(use_diff=False)), state)
    return Student(fields, tensors, None, {}, "summarize", (), SOURCE, 0, "random", "0" * 64)


@pytest.fixture(scope="module", autouse=True)
def one_torch_thread() -> Iterator[None]:
    """Matrices this small only wait for one another on several threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def write() -> Callable[..., Artifact]:
    """``write(runtime, precision, folder)``: an artifact of the tiny student, or of one of other ``sizes``."""

    def write(
        runtime: str, precision: str, folder: Path, source: int = SOURCE, target: int = TARGET, **sizes: int
    ) -> Artifact:
        student, engine = random_student(**sizes), ENGINES[runtime]
        graph = graph_of(student, precision).eval()
        with torch.no_grad():
            weights = freeze(graph)
        export = getattr(importlib.import_module(f"edgescribe.converters.export.{engine.module}"), engine.function)
        export(student.anatomy, student.shape, weights, folder / engine.file, source, target)
        return Artifact(runtime, precision, folder / engine.file, graph)

    return write


@pytest.fixture(scope="session")
def written(write: Callable[..., Artifact], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Artifact]:
    """``written(runtime, precision)``, each written once. Copy the files before changing them."""
    made: dict[tuple[str, str], Artifact] = {}

    def find(runtime: str, precision: str) -> Artifact:
        if (runtime, precision) not in made:
            folder = tmp_path_factory.mktemp(f"{runtime}-{precision}")
            made[runtime, precision] = write(runtime, precision, folder)
        return made[runtime, precision]

    return find


@pytest.fixture(scope="module", params=ENGINES)
def runtime(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=PRECISIONS)
def precision(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def artifact(runtime: str, precision: str, written: Callable[[str, str], Artifact]) -> Artifact:
    """Of each runtime and precision."""
    return written(runtime, precision)


@pytest.fixture(scope="module")
def int8(runtime: str, written: Callable[[str, str], Artifact]) -> Artifact:
    """Of each runtime, in int8."""
    return written(runtime, "w8a8-dynamic")


@pytest.fixture(scope="module")
def exact(runtime: str, written: Callable[[str, str], Artifact]) -> Artifact:
    """Of each runtime, in the precision whose logits hang least on the sizes of runs."""
    return written(runtime, ENGINES[runtime].exact)


@pytest.fixture(scope="module")
def opened(int8: Artifact) -> Iterator[Any]:
    session = int8.open()
    yield session
    session.close()


@pytest.fixture
def session(opened: Any) -> Any:
    """A session in int8 that has read a source."""
    opened.read([1])
    return opened


@pytest.fixture(scope="session")
def tokens_of() -> Callable[..., np.ndarray]:
    """``tokens_of(count, seed=0)``: random ones, int32."""

    def draw(count: int, seed: int = 0) -> np.ndarray:
        return np.random.default_rng(seed).integers(0, VOCABULARY, count).astype(np.int32)

    return draw
