"""Whole students as ONNX artifacts: against the torch reference, what the file holds, and how it is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from edgescribe.converters.anatomy import Task, anatomy_of
from edgescribe.converters.export.onnx import export_onnx, kernel_report, read_back
from edgescribe.converters.freeze import freeze
from edgescribe.converters.quantized_weights import QuantizedMatrix, QuantizedTable, QuantizedWeights
from edgescribe.converters.student import Student
from edgescribe.converters.torch_graph import TorchGraph
from edgescribe.errors import BundleError, OutputError
from tokenizers import Tokenizer, models

VOCABULARY, POSITIONS, LABELS = 101, 24, 5


def make_student(task: Task, activation: str = "gelu", layers: int = 2) -> Student:
    config = {
        "model_type": "bert",
        "vocab_size": VOCABULARY,
        "hidden_size": 24,
        "num_hidden_layers": layers,
        "num_attention_heads": 3,
        "intermediate_size": 40,
        "max_position_embeddings": POSITIONS,
        "type_vocab_size": 2,
        "hidden_act": activation,
        "layer_norm_eps": 1e-12,
        "id2label": {str(index): f"label {index}" for index in range(LABELS)},
    }
    sizes = {
        "vocabulary": VOCABULARY, "positions": POSITIONS, "types": 2, "embedding": 24, "hidden": 24, "heads": 24,
        "neurons": 40, "labels": LABELS,
    }  # fmt: skip
    generator = torch.Generator().manual_seed(7)
    state = {}
    for name, parameter in anatomy_of("bert").parameters_of(task, layers).items():
        tensor = torch.randn([sizes[role] for role in parameter.axes], generator=generator) * 0.2
        state[name] = tensor + 1 if parameter.kind == "norm" and name.endswith(".weight") else tensor
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    labels = tuple(f"label {index}" for index in range(LABELS))
    return Student(config, state, tokenizer, {}, task, labels, POSITIONS, 0, "random", "0" * 64)


def make_feeds(batch: int, tokens: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Texts of different lengths, padded on the right."""
    random = np.random.default_rng(seed)
    mask = np.ones((batch, tokens), np.int32)
    for row in mask[1:]:
        row[random.integers(1, tokens + 1) :] = 0
    return {"input_ids": random.integers(0, VOCABULARY, (batch, tokens)).astype(np.int32), "attention_mask": mask}


def torch_outputs(graph: TorchGraph, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    with torch.no_grad():
        results = graph.run({name: torch.from_numpy(feed.astype(np.int64)) for name, feed in feeds.items()})
    return {name: result.numpy() for name, result in results.items()}


def frozen(student: Student, precision: str) -> tuple[TorchGraph, QuantizedWeights]:
    graph = TorchGraph(student, precision).eval()
    if precision == "w8a8-static":
        for seed in range(8):
            torch_outputs(graph, make_feeds(4, 16, seed))
        graph.start_quantizers()
    return graph, freeze(graph)


def exported(student: Student, precision: str, folder: Path) -> tuple[TorchGraph, QuantizedWeights, Path]:
    graph, weights = frozen(student, precision)
    path = folder / "student.onnx"
    export_onnx(student.anatomy, student.shape, student.task, weights, path)
    return graph, weights, path


def opened(path: Path, level: str = "ORT_ENABLE_ALL", exact: str = "0") -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.add_session_config_entry("session.x64quantprecision", exact)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("activation", ["gelu", "relu"])
@pytest.mark.parametrize("task", ["classify", "tag", "embed"])
def test_float_is_torch(task: Task, activation: str, tmp_path: Path) -> None:
    graph, _, path = exported(make_student(task, activation), "fp32", tmp_path)
    session = opened(path)
    for feeds in (make_feeds(1, 1), make_feeds(3, 11), make_feeds(2, POSITIONS)):
        expected = torch_outputs(graph, feeds)
        got = dict(zip(expected, session.run(list(expected), feeds), strict=True))
        for name in expected:
            kept = feeds["attention_mask"][..., None] if task == "tag" else 1
            np.testing.assert_allclose(got[name] * kept, expected[name] * kept, atol=1e-5)


@pytest.mark.parametrize("precision", ["w8a8-static", "w8a8-dynamic"])
@pytest.mark.parametrize("activation", ["gelu", "relu"])
@pytest.mark.parametrize("task", ["classify", "tag", "embed"])
def test_int8_is_near_the_torch_reference(task: Task, activation: str, precision: str, tmp_path: Path) -> None:
    graph, _, path = exported(make_student(task, activation), precision, tmp_path)
    session = opened(path)
    feeds = make_feeds(6, 16, 99)
    for name, expected in torch_outputs(graph, feeds).items():
        got = session.run([name], feeds)[0]
        assert np.abs(got - expected).mean() < 0.05 * expected.std()
        assert np.corrcoef(got.reshape(-1), expected.reshape(-1))[0, 1] > 0.995


@pytest.mark.parametrize("precision", ["w8a8-static", "w8a8-dynamic"])
@pytest.mark.parametrize("layers", [1, 3])
def test_the_file_holds_the_very_numbers(precision: str, layers: int, tmp_path: Path) -> None:
    _, weights, path = exported(make_student("classify", "relu", layers), precision, tmp_path)
    contents = read_back(path)
    assert set(contents.matrices) == set(weights.matrices)
    assert set(contents.tables) == set(weights.tables)
    assert contents.sites == dict(weights.sites)
    for name, matrix in weights.matrices.items():
        assert isinstance(matrix, QuantizedMatrix)
        np.testing.assert_array_equal(contents.matrices[name][0], matrix.integers)
        np.testing.assert_array_equal(contents.matrices[name][1], matrix.scales)
    for name, table in weights.tables.items():
        assert isinstance(table, QuantizedTable)
        np.testing.assert_array_equal(contents.tables[name][0], table.integers)
        np.testing.assert_array_equal(contents.tables[name][1], table.scales)


@pytest.mark.parametrize("precision", ["fp32", "w8a8-static", "w8a8-dynamic"])
def test_every_linear_layer_is_reported_with_its_kernel(precision: str, tmp_path: Path) -> None:
    _, _, path = exported(make_student("classify", "relu"), precision, tmp_path)
    report = kernel_report(path)
    # Two layers of four products, one more where the last layer's query is of one token, and the head's two.
    assert len(report) == 2 * 4 + 1 + 2
    assert {kernel.site for kernel in report} >= {"layer.0.qkv", "layer.1.feed_forward_out", "pooler", "classifier"}
    assert all(kernel.is_int8 == (precision != "fp32") for kernel in report)


def test_precision_and_shapes_can_be_read_off_the_file(tmp_path: Path) -> None:
    _, _, path = exported(make_student("classify"), "w8a8-static", tmp_path)
    session = opened(path)
    assert session.get_modelmeta().custom_metadata_map["precision"] == "w8a8-static"
    assert {(given.name, given.type, tuple(given.shape)) for given in session.get_inputs()} == {
        (name, "tensor(int32)", ("batch", "tokens")) for name in ("input_ids", "attention_mask")
    }
    (logits,) = session.get_outputs()
    assert (logits.name, logits.type, logits.shape) == ("logits", "tensor(float)", ["batch", LABELS])


@pytest.mark.parametrize("precision", ["w8a8-static", "w8a8-dynamic"])
def test_every_way_of_opening_gives_the_same_answer(precision: str, tmp_path: Path) -> None:
    _, _, path = exported(make_student("classify", "relu"), precision, tmp_path)
    feeds = make_feeds(2, 9)
    expected = opened(path, exact="1").run(None, feeds)[0]
    for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED"):
        got = opened(path, level).run(None, feeds)[0]
        assert np.abs(got - expected).mean() < 0.1 * expected.std()


def test_the_neighbours_of_a_text_do_not_change_its_answer(tmp_path: Path) -> None:
    _, _, path = exported(make_student("classify"), "w8a8-static", tmp_path)
    session = opened(path)
    feeds = make_feeds(4, 12)
    together = session.run(None, feeds)[0]
    for row in range(4):
        length = int(feeds["attention_mask"][row].sum())
        alone = {name: feed[row : row + 1, :length] for name, feed in feeds.items()}
        np.testing.assert_allclose(session.run(None, alone)[0][0], together[row], atol=0.1 * together.std())


def test_equal_students_give_equal_bytes(tmp_path: Path) -> None:
    student = make_student("embed")
    _, weights = frozen(student, "w8a8-static")
    for name in ("a.onnx", "b.onnx"):
        export_onnx(student.anatomy, student.shape, student.task, weights, tmp_path / name)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    student = make_student("classify")
    _, weights = frozen(student, "fp32")
    with pytest.raises(OutputError, match=r"\.onnx"):
        export_onnx(student.anatomy, student.shape, student.task, weights, tmp_path / "student.bin")
    with pytest.raises(OutputError, match="cannot write"):
        export_onnx(student.anatomy, student.shape, student.task, weights, tmp_path / "missing" / "student.onnx")
    (tmp_path / "taken.onnx").mkdir()
    with pytest.raises(OutputError, match="cannot write"):
        export_onnx(student.anatomy, student.shape, student.task, weights, tmp_path / "taken.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["taken.onnx"]


@pytest.mark.parametrize("content", [None, b"", b"not a model", b"\x08\x0b\x12"])
def test_a_damaged_file_is_said(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "student.onnx"
    if content is not None:
        path.write_bytes(content)
    for reader in (read_back, kernel_report):
        with pytest.raises(BundleError, match=r"student\.onnx"):
            reader(path)
