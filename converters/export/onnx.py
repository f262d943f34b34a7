"""Writes a student as an ONNX artifact (one ``.onnx`` file) for ONNX Runtime, and reads it back.

The graph is :class:`~edgescribe.converters.export.onnx_graph.OnnxGraph`'s. Reading back tells which integers, scales
and grids a file really holds, and which kernels ONNX Runtime's CPU provider really runs them on.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import numpy_helper

from ...errors import BundleError, OutputError
from ..anatomy import Anatomy, Shape, Task
from ..quantized_weights import Grid, QuantizedWeights, SiteGrids
from .onnx_graph import OnnxGraph

LINEAR_OPERATORS = ("QGemm", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "Gemm", "FusedGemm")
INT8_OPERATORS = LINEAR_OPERATORS[:3]


@dataclass(frozen=True)
class OnnxContents:
    """What a file holds.

    Attributes:
        matrices: integers int8 ``[out, in]`` and scales float32 ``[out]`` of each quantised linear layer, by name.
        tables: integers int8 ``[rows, width]`` and scales float32 ``[rows]`` of each quantised table, by name.
        sites: activation grids by site; empty unless the file is static.
    """

    matrices: dict[str, tuple[NDArray[np.int8], NDArray[np.float32]]]
    tables: dict[str, tuple[NDArray[np.int8], NDArray[np.float32]]]
    sites: dict[str, SiteGrids]


@dataclass(frozen=True)
class LinearKernel:
    """How ONNX Runtime runs one product of the graph.

    ``site``: the site it was written for; ``kernel``: the operator that ONNX Runtime runs after optimising
    (``QGemm``); ``precision``: of its stored operand (``i8``, ``u8`` or ``f32``).
    """

    site: str
    kernel: str
    precision: str

    @property
    def is_int8(self) -> bool:
        """Whether the product multiplies 8-bit integers."""
        return self.kernel in INT8_OPERATORS and self.precision in ("i8", "u8")


def export_onnx(anatomy: Anatomy, shape: Shape, task: Task, weights: QuantizedWeights, path: Path) -> None:
    """Write ``path`` (``.onnx``), whole or not at all.

    Inputs are int32 ``input_ids``, ``attention_mask`` and, where the family reads them, ``token_type_ids``, all
    ``[batch, tokens]`` with both axes free; outputs are float32, as the family's program names them.
    Equal arguments give equal bytes.

    Raises:
        OutputError: the name does not end in ``.onnx`` or the folder cannot be written.
        StudentError: the program reads a weight or site that ``weights`` does not hold.
    """
    if path.suffix != ".onnx":
        raise OutputError(f"an ONNX artifact's name ends in .onnx, and {str(path)!r} does not: name it so")
    graph = OnnxGraph(weights, shape.positions)
    anatomy.forward(graph, shape, task)
    write_model(graph, path)


def write_model(graph: OnnxGraph, path: Path) -> None:
    """Write what a program built, whole or not at all.

    Raises:
        OutputError: the folder cannot be written.
    """
    content = graph.writer.model(graph.inputs, {"precision": graph.weights.precision}).SerializeToString(
        deterministic=True
    )
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.stem}-", dir=path.parent) as folder:
            draft = Path(folder, path.name)
            with draft.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {str(path)!r}: {error}; choose a folder that can be written") from error


def read_back(path: Path) -> OnnxContents:
    """The integers, scales and grids that an artifact of :func:`export_onnx` holds.

    Raises:
        BundleError: the file is not a readable ONNX model.
    """
    graph = _read(path).graph
    constants = {tensor.name: tensor for tensor in graph.initializer}

    def array(name: str) -> NDArray[Any]:
        return np.array(numpy_helper.to_array(constants[name]), copy=True)

    contents = OnnxContents({}, {}, {})
    for node in graph.node:
        if node.op_type in ("QGemm", "MatMulIntegerToFloat"):
            site, _, joined = node.name.partition(":")
            static = node.op_type == "QGemm"
            weight, scales = (node.input[index] for index in ((3, 4) if static else (1, 3)))
            if weight in constants:
                names, integers = joined.split("|"), array(weight) if static else array(weight).T
                parts = zip(names, np.split(integers, len(names)), np.split(array(scales), len(names)), strict=True)
                contents.matrices.update({name: (np.ascontiguousarray(rows), part) for name, rows, part in parts})
            if static:
                ends = ((1, 2), (7, 8))
                grids = [Grid(array(node.input[s]).item(), array(node.input[z]).item() - 128) for s, z in ends]
                contents.sites[site] = SiteGrids(*grids)
        elif node.op_type in ("Gather", "Slice"):
            name = node.input[0]
            if "|" not in name and name in constants and f"{name}.scales" in constants:
                contents.tables[name] = (array(name), array(f"{name}.scales"))
    return contents


def kernel_report(path: Path) -> list[LinearKernel]:
    """How ONNX Runtime's CPU provider runs each linear layer on this machine, read from the graph it optimised.

    Raises:
        BundleError: the file is not a readable ONNX model.
    """
    written = _read(path).graph
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder, "optimised.onnx"))
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        graph = _read(Path(options.optimized_model_filepath)).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    by_name = {node.name: node for node in graph.node}
    report = []
    for layer in written.node:
        if layer.op_type not in LINEAR_OPERATORS or ":" not in layer.name:
            continue
        weight = layer.input[3 if layer.op_type == "QGemm" else 1]
        node = by_name.get(layer.name) or next(node for node in graph.node if weight in node.input)
        stored = node.input[3 if node.op_type == "QGemm" else 1]
        kind = {onnx.TensorProto.INT8: "i8", onnx.TensorProto.UINT8: "u8", onnx.TensorProto.FLOAT: "f32"}
        report.append(LinearKernel(layer.name.partition(":")[0], node.op_type, kind.get(types.get(stored, 0), "?")))
    return report


def _read(path: Path) -> onnx.ModelProto:
    try:
        model = onnx.load(path)
    except Exception as error:
        raise BundleError(f"{str(path)!r} is not an ONNX model that can be read: {error}") from error
    if not model.graph.node:
        raise BundleError(f"{str(path)!r} is an ONNX model without a single node: it is damaged, export it anew")
    return model
