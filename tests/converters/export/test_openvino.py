"""Whole students written for OpenVINO: equal to the torch graph, read back, run on int8 kernels."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models

ov = pytest.importorskip("openvino")

from edgescribe.converters import families  # noqa: E402
from edgescribe.converters.anatomy import ENCODERS, anatomy_of  # noqa: E402
from edgescribe.converters.export.openvino import export_openvino, kernel_report, read_back  # noqa: E402
from edgescribe.converters.freeze import freeze  # noqa: E402
from edgescribe.converters.quantized_weights import QuantizedMatrix, QuantizedTable, QuantizedWeights  # noqa: E402
from edgescribe.converters.student import Student  # noqa: E402
from edgescribe.converters.torch_graph import TorchGraph  # noqa: E402
from edgescribe.device_profiles.int8_gain import has_dot_product  # noqa: E402
from edgescribe.device_profiles.probe_cpu import probe_cpu  # noqa: E402
from edgescribe.errors import BundleError, OutputError, StudentError  # noqa: E402

SIZES = {
    "layers": 2,
    "hidden": 48,
    "heads": 3,
    "neurons": 40,
    "vocabulary": 101,
    "positions": 40,
    "embedding": 32,
}
KNOWN = [name for name in ENCODERS if Path(next(iter(families.__path__)), f"{name}.py").exists()]
ALL = [KNOWN[0], *(pytest.param(name, marks=pytest.mark.slow) for name in KNOWN[1:])]  # one is fast, all take a while
PRECISIONS = ("fp32", "w8a8-static", "w8a8-dynamic")
CORES = probe_cpu()
exact_int8 = pytest.mark.skipif(
    CORES.isa == "x86_64" and not any(has_dot_product(kind.features) for kind in CORES.clusters.values()),
    reason="OpenVINO's int8 kernels saturate on x86 processors without VNNI",
)
CHECKED = [pytest.param(name, marks=exact_int8) if name != "fp32" else name for name in PRECISIONS]


@cache
def student_of(family: str, task: Any, activation: str = "") -> Student:
    """A student of random weights with 5 labels, made by transformers."""
    import transformers

    anatomy = anatomy_of(family)
    settings: dict[str, Any] = {
        field: SIZES[role] for role, field in anatomy.config_fields.items() if role in SIZES
    }
    if activation:
        settings[anatomy.config_fields["activation"]] = activation
    labels = {index: f"label {index}" for index in range(5)}
    config = transformers.AutoConfig.for_model(family, **settings, id2label=labels)
    torch.manual_seed(7)
    model = getattr(transformers, anatomy.architectures[task])(config)
    content = config.to_dict()
    shape = anatomy.shape(content)
    names = anatomy.parameters_of(task, shape.layers)
    found = model.state_dict()
    state = {name: found[name].float().clone() for name in names if name in found}
    for name, tensor in state.items():
        # Weights far larger than those of a fresh model: else every token looks alike, and tests see nothing.
        if tensor.ndim > 1:
            tensor.normal_(0, 0.5 if "embed" in name else tensor.shape[-1] ** -0.5)
        else:
            tensor.add_(torch.randn_like(tensor) * 0.1)
    names_of_labels = () if task == "embed" else tuple(labels.values())
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    longest = shape.positions - shape.position_offset
    return Student(content, state, tokenizer, {}, task, names_of_labels, longest, 0, "random", "0" * 64)


def feeds_of(student: Student, lengths: tuple[int, ...], seed: int = 0) -> dict[str, np.ndarray]:
    """Random tokens for each length, padded to the longest on the family's side."""
    random = np.random.default_rng(seed)
    tokens = max(lengths)
    feeds = {name: np.zeros((len(lengths), tokens), np.int32) for name in ("input_ids", "attention_mask")}
    feeds["token_type_ids"] = np.zeros((len(lengths), tokens), np.int32)
    for row, length in enumerate(lengths):
        place = slice(0, length) if student.anatomy.padding_side == "right" else slice(tokens - length, tokens)
        feeds["input_ids"][row, place] = random.integers(5, SIZES["vocabulary"], length)
        feeds["attention_mask"][row, place] = 1
    return feeds


def trained(student: Student, precision: str) -> TorchGraph:
    """The torch graph of a student, its grids taken from a few batches."""
    graph = TorchGraph(student, precision).eval()
    if precision == "w8a8-static":
        with torch.no_grad():
            for seed in range(4):
                graph.run(tensors(feeds_of(student, (12, 9, 20), seed + 50)))
        graph.start_quantizers()
    return graph


def tensors(feeds: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array.astype(np.int64)) for name, array in feeds.items()}


def export(student: Student, weights: QuantizedWeights, path: Path) -> Any:
    export_openvino(student.anatomy, student.shape, student.task, weights, path)
    return ov.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


def run(compiled: Any, feeds: dict[str, np.ndarray]) -> np.ndarray:
    wanted = {name for port in compiled.inputs for name in port.get_names()}
    (result,) = compiled({name: array for name, array in feeds.items() if name in wanted}).values()
    return np.array(result)


@pytest.mark.parametrize("precision", CHECKED)
@pytest.mark.parametrize("task", ["classify", "tag", "embed"])
@pytest.mark.parametrize("family", ALL)
def test_equals_the_torch_graph(family: str, task: str, precision: str, tmp_path: Path) -> None:
    student = student_of(family, task)
    graph = trained(student, precision)
    compiled = export(student, freeze(graph), tmp_path / "model.xml")
    assert [port.get_any_name() for port in compiled.outputs] == ["embedding" if task == "embed" else "logits"]
    assert all(port.get_element_type() == ov.Type.i32 for port in compiled.inputs)
    for lengths in ((11,), (1,), (14, 3, 20)):
        feeds = feeds_of(student, lengths)
        with torch.no_grad():
            (wanted,) = (value.numpy() for value in graph.run(tensors(feeds)).values())
        got = run(compiled, feeds)
        assert got.shape == wanted.shape
        kept = feeds["attention_mask"] == 1 if task == "tag" else slice(None)
        difference = np.abs(got - wanted)[kept]
        if precision == "fp32":
            assert difference.max() < 1e-5 * max(1.0, float(np.abs(wanted).max()))
        else:
            # A step that float noise rounds the other way early on grows; most of what comes out must not move.
            assert difference.mean() < 0.05 * wanted[kept].std()


@pytest.mark.parametrize("precision", [CHECKED[0], CHECKED[2]])
@pytest.mark.parametrize("family", ALL)
def test_padding_changes_nothing(family: str, precision: str, tmp_path: Path) -> None:
    student = student_of(family, "classify")
    compiled = export(student, freeze(trained(student, precision)), tmp_path / "model.xml")
    feeds = feeds_of(student, (4, 17, 9))
    together = run(compiled, feeds)
    for row in range(3):
        kept = feeds["attention_mask"][row] == 1
        alone = run(compiled, {name: np.ascontiguousarray(array[row : row + 1, kept]) for name, array in feeds.items()})
        np.testing.assert_allclose(together[row], alone[0], atol=1e-4)


@pytest.mark.parametrize("precision", ["w8a8-static", "w8a8-dynamic"])
@pytest.mark.parametrize("family", ALL)
def test_integers_scales_and_grids_read_back_equal(family: str, precision: str, tmp_path: Path) -> None:
    student = student_of(family, "classify")
    weights = freeze(trained(student, precision))
    path = tmp_path / "model.xml"
    export_openvino(student.anatomy, student.shape, student.task, weights, path)
    contents = read_back(path)
    matrices = {name: m for name, m in weights.matrices.items() if isinstance(m, QuantizedMatrix)}
    assert contents.matrices.keys() == matrices.keys()
    for name, (integers, scales) in contents.matrices.items():
        np.testing.assert_array_equal(integers, matrices[name].integers)
        np.testing.assert_array_equal(scales, matrices[name].scales)
    for name, (integers, scales) in contents.tables.items():
        table = weights.tables[name]
        assert isinstance(table, QuantizedTable)
        np.testing.assert_array_equal(integers, table.integers)
        np.testing.assert_array_equal(scales, table.scales)
    assert contents.tables.keys() <= weights.tables.keys()
    assert contents.sites.keys() == weights.sites.keys()
    for site, grids in contents.sites.items():
        wanted = weights.sites[site]
        for got, grid in ((grids.input, wanted.input), (grids.output, wanted.output)):
            assert got.zero_point == grid.zero_point
            assert got.scale == np.float32(grid.scale)


@pytest.mark.parametrize("activation", ["gelu", "relu"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_linear_layer_runs_on_an_int8_kernel(precision: str, activation: str, tmp_path: Path) -> None:
    student = student_of("bert", "classify", activation)
    path = tmp_path / "model.xml"
    weights = freeze(trained(student, precision))
    export_openvino(student.anatomy, student.shape, student.task, weights, path)
    report = kernel_report(path)
    assert len(report) == len(weights.matrices)
    assert all(kernel.site for kernel in report)
    assert {kernel.is_int8 for kernel in report} == {precision != "fp32"}
    if precision == "w8a8-static":
        assert {kernel.site for kernel in report} == set(weights.sites)


def test_tables_are_never_unfolded(tmp_path: Path) -> None:
    student = student_of("bert", "classify")
    compiled = export(student, freeze(trained(student, "w8a8-static")), tmp_path / "model.xml")
    shapes = {}
    for node in compiled.get_runtime_model().get_ordered_ops():
        shape = node.get_output_partial_shape(0)
        if shape.is_static and tuple(shape.to_shape()) == (SIZES["vocabulary"], SIZES["hidden"]):
            shapes[node.get_friendly_name()] = str(node.get_rt_info()["runtimePrecision"].astype(str))
    assert set(shapes.values()) == {"i8"}
    sizes = [path.stat().st_size for path in tmp_path.iterdir() if path.suffix == ".bin"]
    assert sizes[0] < 2 * student.parameter_count()


def test_the_xml_holds_no_more_than_reading_needs(tmp_path: Path) -> None:
    student = student_of("bert", "classify")
    path, whole = tmp_path / "model.xml", tmp_path / "whole.xml"
    export(student, freeze(trained(student, "w8a8-static")), path)
    read = ov.Core().read_model(path)
    ov.save_model(read, whole, compress_to_fp16=False)
    lines = [line.strip() for line in whole.read_text(encoding="utf-8").splitlines()]
    assert path.stat().st_size < 0.8 * len("".join(lines))
    again = ov.Core().read_model(whole)
    for one, other in zip(read.get_ordered_ops(), again.get_ordered_ops(), strict=True):
        shapes = [[str(port.get_partial_shape()) for port in node.outputs()] for node in (one, other)]
        assert shapes[0] == shapes[1], one.get_friendly_name()


def test_equal_students_give_equal_files(tmp_path: Path) -> None:
    student = student_of("bert", "embed")
    weights = freeze(trained(student, "w8a8-static"))
    for name in ("one", "two"):
        export_openvino(student.anatomy, student.shape, student.task, copy.deepcopy(weights), tmp_path / f"{name}.xml")
    for suffix in (".xml", ".bin"):
        assert (tmp_path / f"one{suffix}").read_bytes() == (tmp_path / f"two{suffix}").read_bytes()


def test_an_older_artifact_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    student = student_of("bert", "classify")
    weights = freeze(trained(student, "fp32"))
    (tmp_path / "model.xml").write_text("old")
    export(student, weights, tmp_path / "model.xml")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.bin", "model.xml"]


def test_a_failed_export_leaves_the_older_artifact(tmp_path: Path) -> None:
    student = student_of("bert", "classify")
    weights = freeze(trained(student, "fp32"))
    lacking = QuantizedWeights("fp32", {}, weights.tables, weights.vectors, {}, weights.config)
    (tmp_path / "model.xml").write_text("old")
    with pytest.raises(StudentError, match="no linear layer"):
        export_openvino(student.anatomy, student.shape, student.task, lacking, tmp_path / "model.xml")
    assert (tmp_path / "model.xml").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model.xml"]


def test_a_name_or_folder_that_will_not_do_is_refused(tmp_path: Path) -> None:
    student = student_of("bert", "classify")
    weights = freeze(trained(student, "fp32"))
    with pytest.raises(OutputError, match=r"\.xml"):
        export_openvino(student.anatomy, student.shape, student.task, weights, tmp_path / "model.onnx")
    with pytest.raises(OutputError, match="nowhere"):
        export_openvino(student.anatomy, student.shape, student.task, weights, tmp_path / "nowhere" / "model.xml")


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.xml"
    path.write_text("<net>")
    for read in (read_back, kernel_report):
        with pytest.raises(BundleError, match=r"model\.xml"):
            read(path)
