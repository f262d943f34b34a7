"""Whole programs as LiteRT files: numbers, integers read back, kernels, signatures, and files that are damaged."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ai_edge_litert.interpreter import Interpreter
from edgescribe.converters.anatomy import anatomy_of
from edgescribe.converters.export.litert import (
    export_litert,
    kernel_report,
    read_back,
    undelegated_operators,
)
from edgescribe.converters.freeze import freeze
from edgescribe.converters.quantized_weights import QuantizedMatrix, QuantizedTable, QuantizedWeights
from edgescribe.converters.student import Student
from edgescribe.converters.torch_graph import TorchGraph
from edgescribe.errors import BundleError, OutputError, UsageError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

VOCABULARY, POSITIONS, LABELS = 101, 40, 5
PRECISIONS = ("fp32", "w8a8-static", "w8a8-dynamic")


def bert(task: Any, activation: str = "gelu", hidden: int = 48, heads: int = 3, layers: int = 2) -> Student:
    """A BERT of odd sizes with random weights."""
    config = {
        "model_type": "bert",
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "intermediate_size": 101,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": POSITIONS,
        "type_vocab_size": 2,
        "hidden_act": activation,
        "layer_norm_eps": 1e-12,
        "id2label": {str(index): str(index) for index in range(LABELS)},
    }
    sizes = {
        "vocabulary": VOCABULARY, "positions": POSITIONS, "types": 2, "embedding": hidden, "hidden": hidden,
        "heads": hidden, "neurons": 101, "labels": LABELS,
    }  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, parameter in anatomy_of("bert").parameters_of(task, layers).items():
        shape = tuple(sizes[axis] for axis in parameter.axes)
        drawn = torch.randn(shape, generator=generator)
        gain = parameter.kind == "norm" and name.endswith("weight")
        state[name] = drawn / shape[-1] ** 0.5 if parameter.kind == "matrix" else drawn * 0.2 + (1 if gain else 0)
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    labels = () if task == "embed" else tuple(str(index) for index in range(LABELS))
    return Student(config, state, tokenizer, {}, task, labels, POSITIONS, 0, "random", "0" * 64)


def feeds(seed: int, tokens: int, kept: int) -> dict[str, np.ndarray]:
    ids = np.random.default_rng(seed).integers(0, VOCABULARY, (1, tokens)).astype(np.int32)
    return {"input_ids": ids, "attention_mask": (np.arange(tokens) < kept).astype(np.int32)[None]}


def calibrated(student: Student, precision: str) -> TorchGraph:
    graph = TorchGraph(student, precision).eval()
    for seed in range(8):
        torch_run(graph, feeds(seed, 20, 20 - seed))
    if precision != "fp32":
        graph.start_quantizers()
    return graph


@torch.no_grad()
def torch_run(graph: TorchGraph, fed: dict[str, np.ndarray]) -> np.ndarray:
    (result,) = graph.run({name: torch.from_numpy(array).long() for name, array in fed.items()}).values()
    return result.numpy()


def litert_run(path: Path, fed: dict[str, np.ndarray]) -> np.ndarray:
    tokens = fed["input_ids"].shape[1]
    runner = Interpreter(model_path=str(path), num_threads=1).get_signature_runner(f"tokens_{tokens}")
    (result,) = runner(**fed).values()
    return np.asarray(result)


def exported(
    student: Student, precision: str, path: Path, buckets: tuple[int, ...]
) -> tuple[TorchGraph, QuantizedWeights]:
    graph = calibrated(student, precision)
    weights = freeze(graph)
    export_litert(student.anatomy, student.shape, student.task, weights, path, buckets)
    return graph, weights


@pytest.fixture(scope="module", autouse=True)
def one_torch_thread() -> Iterator[None]:
    """Matrices this small only wait for one another on several threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=PRECISIONS)
def classifier(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, QuantizedWeights]:
    """A file with signatures of 1, 8 and 32 tokens, and what it was made from."""
    path = tmp_path_factory.mktemp("litert") / f"{request.param}.tflite"
    return path, exported(bert("classify"), request.param, path, (32, 8, 1))[1]


@pytest.mark.parametrize("task", ["classify", "tag", "embed"])
@pytest.mark.parametrize("activation", ["gelu", "relu", "gelu_new", "silu"])
def test_float_file_equals_torch(task: str, activation: str, tmp_path: Path) -> None:
    path = tmp_path / "student.tflite"
    graph, _ = exported(bert(task, activation), "fp32", path, (1, 7, 32))
    for tokens, kept in ((1, 1), (7, 7), (7, 3), (32, 32), (32, 1)):
        fed = feeds(tokens + kept, tokens, kept)
        np.testing.assert_allclose(litert_run(path, fed), torch_run(graph, fed), atol=1e-5)


@pytest.mark.parametrize(("hidden", "heads", "layers"), [(10, 1, 1), (33, 3, 1), (66, 2, 3)])
def test_odd_sizes(hidden: int, heads: int, layers: int, tmp_path: Path) -> None:
    path = tmp_path / "student.tflite"
    fed = feeds(0, 9, 8)
    for precision in PRECISIONS:
        graph, _ = exported(bert("classify", "gelu", hidden, heads, layers), precision, path, (9,))
        np.testing.assert_allclose(
            litert_run(path, fed), torch_run(graph, fed), atol=1e-5 if precision == "fp32" else 0.15
        )


@pytest.mark.parametrize("precision", PRECISIONS[1:])
@pytest.mark.parametrize("task", ["classify", "tag", "embed"])
@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_integer_files_follow_fake_quantisation(precision: str, task: str, activation: str, tmp_path: Path) -> None:
    path = tmp_path / "student.tflite"
    graph, _ = exported(bert(task, activation), precision, path, (20,))
    pairs = [(litert_run(path, fed), torch_run(graph, fed)) for fed in (feeds(seed, 20, 20) for seed in range(10))]
    got, want = (np.concatenate([pair[side].reshape(-1) for pair in pairs]) for side in (0, 1))
    # A value that rounds the other way early on moves what comes after it: the mean tells, not single elements.
    assert np.abs(got - want).mean() < 0.03 * np.abs(want).mean()


def test_padding_to_a_larger_bucket_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "student.tflite"
    exported(bert("classify"), "fp32", path, (8, 32))
    short = feeds(0, 8, 8)
    long = {name: np.pad(array, ((0, 0), (0, 24))) for name, array in short.items()}
    np.testing.assert_allclose(litert_run(path, long), litert_run(path, short), atol=1e-5)


def test_signatures_name_inputs_and_outputs(classifier: tuple[Path, QuantizedWeights]) -> None:
    signatures = Interpreter(model_path=str(classifier[0])).get_signature_list()
    assert list(signatures) == ["tokens_1", "tokens_8", "tokens_32"]
    for signature in signatures.values():
        assert sorted(signature["inputs"]) == ["attention_mask", "input_ids"]
        assert signature["outputs"] == ["logits"]


def test_integers_scales_and_grids_are_read_back(classifier: tuple[Path, QuantizedWeights]) -> None:
    path, weights = classifier
    contents = read_back(path)
    matrices = {name: held for name, held in weights.matrices.items() if isinstance(held, QuantizedMatrix)}
    tables = {name: held for name, held in weights.tables.items() if isinstance(held, QuantizedTable)}
    assert bool(matrices) == bool(tables) == (weights.precision != "fp32")
    for held, found in ((matrices, contents.matrices), (tables, contents.tables)):
        assert found.keys() == held.keys()
        for name, expected in held.items():
            np.testing.assert_array_equal(found[name][0], expected.integers)
            np.testing.assert_array_equal(found[name][1], expected.scales)
    assert contents.sites.keys() == weights.sites.keys()
    for site, grids in weights.sites.items():
        for found_grid, grid in zip(
            (contents.sites[site].input, contents.sites[site].output), (grids.input, grids.output), strict=True
        ):
            assert (np.float32(found_grid.scale), found_grid.zero_point) == (np.float32(grid.scale), grid.zero_point)


def test_every_linear_layer_runs_on_integers_in_xnnpack(classifier: tuple[Path, QuantizedWeights]) -> None:
    path, weights = classifier
    report = kernel_report(path)
    assert {(kernel.signature, kernel.matrix) for kernel in report} == {
        (f"tokens_{tokens}", name) for tokens in (1, 8, 32) for name in weights.matrices
    }
    assert all(kernel.delegated for kernel in report)
    assert all(kernel.is_int8 == (weights.precision != "fp32") for kernel in report)
    if weights.precision == "w8a8-static":
        assert {kernel.operands for kernel in report} == {("int8", "int8", "int8")}
        assert {kernel.site for kernel in report} == set(weights.sites)


def test_only_look_ups_stay_outside_xnnpack(classifier: tuple[Path, QuantizedWeights]) -> None:
    for operators in undelegated_operators(classifier[0]).values():
        assert set(operators) == {"GATHER"}
        assert len(operators) <= 3


def test_constants_are_stored_once(tmp_path: Path) -> None:
    student = bert("classify", hidden=192)
    one, four = tmp_path / "one.tflite", tmp_path / "four.tflite"
    exported(student, "w8a8-static", one, (32,))
    exported(student, "w8a8-static", four, (4, 8, 16, 32))
    assert four.stat().st_size < 1.2 * one.stat().st_size


def test_constants_lie_at_multiples_of_16_bytes(classifier: tuple[Path, QuantizedWeights]) -> None:
    data = classifier[0].read_bytes()
    held = [m.integers for m in classifier[1].matrices.values() if isinstance(m, QuantizedMatrix)]
    assert all(data.find(integers.tobytes()) % 16 == 0 for integers in held)


def test_equal_arguments_give_equal_bytes(classifier: tuple[Path, QuantizedWeights], tmp_path: Path) -> None:
    student = bert("classify")
    again = tmp_path / "again.tflite"
    export_litert(student.anatomy, student.shape, "classify", classifier[1], again, (1, 8, 32, 8))
    assert again.read_bytes() == classifier[0].read_bytes()


@pytest.mark.parametrize("buckets", [(), (0,), (-1, 8), (8, POSITIONS + 1)])
def test_buckets_that_cannot_be(buckets: tuple[int, ...], tmp_path: Path) -> None:
    student = bert("classify")
    weights = freeze(TorchGraph(student))
    with pytest.raises(UsageError, match="bucket"):
        export_litert(student.anatomy, student.shape, "classify", weights, tmp_path / "x.tflite", buckets)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    student = bert("classify")
    weights = freeze(TorchGraph(student))
    with pytest.raises(OutputError, match="nowhere"):
        export_litert(student.anatomy, student.shape, "classify", weights, tmp_path / "nowhere" / "x.tflite", (8,))


def test_an_existing_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.tflite"
    path.write_bytes(b"old")
    student = bert("classify")
    export_litert(student.anatomy, student.shape, "classify", freeze(TorchGraph(student)), path, (8,))
    assert path.read_bytes()[4:8] == b"TFL3"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("read", [read_back, kernel_report, undelegated_operators])
@pytest.mark.parametrize("content", [None, b"", b"TFL3", b"\0" * 64, b"\xff\xff\xff\x7fTFL3" + b"\0" * 64])
def test_files_that_are_no_tflite(read: Any, content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "x.tflite"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BundleError, match=r"x\.tflite"):
        read(path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 0.999), byte=st.integers(0, 255), cut=st.booleans())
def test_damaged_files_are_read_or_refused(
    place: float, byte: int, cut: bool, small: Path, tmp_path: Path
) -> None:
    data = bytearray(small.read_bytes())
    at = int(place * len(data))
    path = tmp_path / "damaged.tflite"
    data[at] = byte
    path.write_bytes(data[:at] if cut else data)
    with contextlib.suppress(BundleError):
        read_back(path)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("litert") / "small.tflite"
    exported(bert("classify", hidden=6, heads=1, layers=1), "w8a8-static", path, (4,))
    return path


RUN_BY_PREDECESSOR = """
import json, sys
import numpy as np
from tflite_runtime.interpreter import Interpreter
fed = {name: np.array(value, np.int32) for name, value in json.load(sys.stdin).items()}
for path in sys.argv[1:]:
    runner = Interpreter(model_path=path, num_threads=1).get_signature_runner("tokens_20")
    print(json.dumps([value.tolist() for value in runner(**fed).values()][0]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info >= (3, 12), reason="tflite_runtime has wheels up to Python 3.11 alone")
def test_tensorflow_lite_2_14_runs_the_files_too(tmp_path: Path) -> None:
    folder = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = str(folder / "bin" / "python")
    command = [python, "-m", "pip", "install", "--quiet", "tflite_runtime==2.14.0", "numpy<2"]
    if subprocess.run(command, check=False).returncode:
        pytest.skip("the package index cannot be reached, so tflite_runtime cannot be installed")
    wanted, paths = [], []
    fed = feeds(0, 20, 15)
    for task in ("classify", "tag", "embed"):
        for precision in ("fp32", "w8a8-static"):
            paths.append(tmp_path / f"{task}-{precision}.tflite")
            exported(bert(task), precision, paths[-1], (20,))
            wanted.append(litert_run(paths[-1], fed))
    done = subprocess.run(
        [python, "-c", RUN_BY_PREDECESSOR, *map(str, paths)],
        input=json.dumps({name: array.tolist() for name, array in fed.items()}),
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    for path, want, line in zip(paths, wanted, done.stdout.splitlines(), strict=True):
        got = np.array(json.loads(line), np.float32)
        np.testing.assert_allclose(got, want, atol=1e-5 if "fp32" in path.name else 0.1, err_msg=path.name)
