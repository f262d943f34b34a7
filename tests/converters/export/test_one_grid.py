"""One set of integers, scales and grids in the three files, for every family; int8 kernels for every linear layer."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from edgescribe.converters.anatomy import ENCODERS
from edgescribe.converters.export.litert import export_litert
from edgescribe.converters.export.litert import kernel_report as litert_kernels
from edgescribe.converters.export.litert import read_back as read_litert
from edgescribe.converters.export.onnx import export_onnx
from edgescribe.converters.export.onnx import kernel_report as onnx_kernels
from edgescribe.converters.export.onnx import read_back as read_onnx
from edgescribe.converters.export.openvino import export_openvino
from edgescribe.converters.export.openvino import kernel_report as openvino_kernels
from edgescribe.converters.export.openvino import read_back as read_openvino
from edgescribe.converters.freeze import freeze
from edgescribe.converters.quantized_weights import QuantizedMatrix, QuantizedTable, QuantizedWeights
from edgescribe.converters.torch_graph import TorchGraph
from edgescribe.converters.training import calibrate
from edgescribe.converters.training_data import make_examples
from edgescribe.runtimes.contract import OpenOptions
from edgescribe.runtimes.registry import open_artifact

FILES = {"onnxruntime": "student.onnx", "openvino": "student.xml", "litert": "student.tflite"}
READERS: dict[str, Callable[[Path], Any]] = {
    "onnxruntime": read_onnx,
    "openvino": read_openvino,
    "litert": read_litert,
}
KERNELS: dict[str, Callable[[Path], Any]] = {
    "onnxruntime": onnx_kernels,
    "openvino": openvino_kernels,
    "litert": litert_kernels,
}
PRECISIONS = ("w8a8-static", "w8a8-dynamic")
ALL = [ENCODERS[0], *(pytest.param(name, marks=pytest.mark.slow) for name in ENCODERS[1:])]  # one is fast


def frozen(student: Any, precision: str, sentences: list[str]) -> tuple[TorchGraph, QuantizedWeights]:
    torch.manual_seed(0)
    graph = TorchGraph(student, precision)
    calibrate(graph, make_examples(student, sentences * 4, None), batch_size=8, count=4)
    return graph, freeze(graph)


def export_all(student: Any, weights: QuantizedWeights, folder: Path) -> dict[str, Path]:
    paths = {runtime: folder / name for runtime, name in FILES.items()}
    arguments = (student.anatomy, student.shape, student.task, weights)
    export_onnx(*arguments, paths["onnxruntime"])
    export_openvino(*arguments, paths["openvino"])
    export_litert(*arguments, paths["litert"], buckets=(16, 32))
    return paths


@pytest.fixture(scope="module", params=[
    pytest.param(pair, id="-".join(pair), marks=() if pair[0] == ENCODERS[0] else pytest.mark.slow)
    for pair in product(ENCODERS, PRECISIONS)
])
def exported(
    request: pytest.FixtureRequest,
    make_student: Callable[..., Any],
    sentences: list[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[QuantizedWeights, dict[str, Path]]:
    """The numbers of a classifier of each family and precision, and its three files."""
    family, precision = request.param
    student = make_student(family, "classify")
    _, weights = frozen(student, precision, sentences)
    return weights, export_all(student, weights, tmp_path_factory.mktemp(family))


def test_the_three_files_hold_the_same_numbers(exported: tuple[QuantizedWeights, dict[str, Path]]) -> None:
    weights, paths = exported
    matrices = {name: each for name, each in weights.matrices.items() if isinstance(each, QuantizedMatrix)}
    tables = {name: each for name, each in weights.tables.items() if isinstance(each, QuantizedTable)}
    assert matrices
    assert tables
    for runtime, path in paths.items():
        found = READERS[runtime](path)
        assert set(found.matrices) == set(matrices), runtime
        for name, matrix in matrices.items():
            integers, scales = found.matrices[name]
            np.testing.assert_array_equal(integers, matrix.integers, f"{runtime} {name}")
            np.testing.assert_array_equal(scales, matrix.scales, f"{runtime} {name}")
        for name, (integers, scales) in found.tables.items():
            np.testing.assert_array_equal(integers, tables[name].integers[: len(integers)], f"{runtime} {name}")
            np.testing.assert_array_equal(scales, tables[name].scales[: len(scales)], f"{runtime} {name}")
        assert set(found.sites) == set(weights.sites), runtime
        for site, grids in weights.sites.items():
            for ours, theirs in ((grids.input, found.sites[site].input), (grids.output, found.sites[site].output)):
                assert np.float32(theirs.scale) == np.float32(ours.scale), f"{runtime} {site}"
                assert theirs.zero_point == ours.zero_point, f"{runtime} {site}"


def test_every_linear_layer_runs_on_int8_kernels_on_every_engine(
    exported: tuple[QuantizedWeights, dict[str, Path]]
) -> None:
    for runtime, path in exported[1].items():
        report = KERNELS[runtime](path)
        assert report, runtime
        assert all(kernel.is_int8 for kernel in report), (runtime, [each for each in report if not each.is_int8])


@pytest.mark.parametrize("task", ["classify", "tag", "embed"])
@pytest.mark.parametrize("family", ALL)
def test_the_engines_give_what_torch_gives_in_float(
    family: str, task: str, make_student: Callable[..., Any], sentences: list[str], tmp_path: Path
) -> None:
    student = make_student(family, task)
    graph, weights = frozen(student, "fp32", sentences)
    asked, expected = [], []
    for sentence in sentences[:4]:
        encoding = student.tokenizer.encode(sentence)
        ids = encoding.ids[: student.max_tokens]
        feeds = {
            "input_ids": np.array([ids], np.int32),
            "attention_mask": np.ones((1, len(ids)), np.int32),
            "token_type_ids": np.array([encoding.type_ids[: len(ids)]], np.int32),
        }
        asked.append(feeds)
        with torch.no_grad():
            expected.append(graph.run({name: torch.from_numpy(value).long() for name, value in feeds.items()}))
    for runtime, path in export_all(student, weights, tmp_path).items():
        session = open_artifact(runtime, path, OpenOptions(threads=1, padding_side=student.anatomy.padding_side))
        names = {spec.name for spec in session.inputs}
        for feeds, answers in zip(asked, expected, strict=True):
            outputs = session.run({name: value for name, value in feeds.items() if name in names})
            for name, value in answers.items():
                np.testing.assert_allclose(
                    outputs[name], value.numpy(), atol=2e-5 * max(1.0, float(value.abs().max())), err_msg=runtime
                )
        session.close()
