"""Freezing: a trained graph becomes :class:`QuantizedWeights`, the numbers that every runtime's file takes over."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .fake_quantize import StaticQuantizer
from .quantized_weights import (
    BlockMatrix,
    FloatMatrix,
    QuantizedMatrix,
    QuantizedTable,
    QuantizedWeights,
    SiteGrids,
    quantize_rows,
    round_blocks,
)
from .student import Student
from .torch_decoder import TorchDecoder
from .torch_graph import TorchGraph, as_matrix


def freeze(graph: TorchGraph) -> QuantizedWeights:
    """The numbers of a graph at its precision; its static quantizers must have been started."""
    quantized = graph.precision != "fp32"
    floats = _matrices_kept_in_float(graph)
    matrices: dict[str, QuantizedMatrix | FloatMatrix] = {}
    tables: dict[str, QuantizedTable | NDArray[np.float32]] = {}
    vectors: dict[str, NDArray[np.float32]] = {}
    blocks: dict[str, BlockMatrix] = {}
    for name, parameter in graph.layout.items():
        short = name.removesuffix(".weight")
        values = _array(graph, name)
        if parameter.kind == "matrix":
            matrix = as_matrix(graph.weight(name).detach(), parameter).float().contiguous().numpy().copy()
            bias_name = f"{short}.bias"
            bias = _array(graph, bias_name) if bias_name in graph.layout else None
            scales = _block_scales(graph, name)
            if scales is not None:
                blocks[short] = BlockMatrix(round_blocks(matrix, scales), scales, bias)
            elif quantized and short not in floats:
                integers, scales = quantize_rows(matrix)
                matrices[short] = QuantizedMatrix(integers, scales, bias)
            else:
                matrices[short] = FloatMatrix(matrix, bias)
        elif parameter.kind == "table":
            scales = _block_scales(graph, name)
            if scales is not None:
                blocks[short] = BlockMatrix(round_blocks(values, scales), scales)
            else:
                tables[short] = QuantizedTable(*quantize_rows(values)) if quantized else values
        elif parameter.kind != "bias":
            vectors[name] = values
    return QuantizedWeights(graph.precision, matrices, tables, vectors, _sites(graph), graph.student.config, blocks)


def freeze_float(student: Student) -> QuantizedWeights:
    """A student's numbers unchanged, for ``fp32`` artifacts."""
    return freeze(TorchGraph(student))


def _array(graph: TorchGraph, name: str) -> NDArray[np.float32]:
    array: NDArray[np.float32] = graph.weight(name).detach().float().numpy().copy()
    return array


def _block_scales(graph: TorchGraph, name: str) -> NDArray[np.float32] | None:
    """The int4 scales ``[out, in / 32]`` of a matrix or table; None where it is not on that grid."""
    scales = graph.block_scales(name) if isinstance(graph, TorchDecoder) else None
    if scales is None:
        return None
    array: NDArray[np.float32] = scales.detach().float().numpy().copy()
    return array


def _matrices_kept_in_float(graph: TorchGraph) -> set[str]:
    """Matrices that no linear layer of the program multiplies: XLNet's, folded with sinusoids into constants."""
    return {name.removesuffix(".weight") for name in graph.folded}


def _sites(graph: TorchGraph) -> dict[str, SiteGrids]:
    sites = {}
    for key, entering in graph.inputs.items():
        if isinstance(entering, StaticQuantizer):
            leaving = graph.outputs[key]
            if not isinstance(leaving, StaticQuantizer):
                raise TypeError(f"site {key} has a static input and no static output")
            sites[key.replace("/", ".")] = SiteGrids(entering.grid(), leaving.grid())
    return sites
