"""Linear layers of an ONNX graph: float, static int8 and dynamic int8 products, and how their weights are stored."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ...errors import StudentError
from ..quantized_weights import FloatMatrix, QuantizedMatrix, QuantizedWeights, SiteGrids, bias_integers
from .onnx_nodes import CONTRIB, NodeWriter
from .onnx_values import Hidden

if TYPE_CHECKING:
    from .onnx_graph import OnnxGraph


class ProductWriter:
    """Writes the linear layers of one graph. Every node is named ``<site>:<matrix>|<matrix>…``."""

    def __init__(self, weights: QuantizedWeights, writer: NodeWriter) -> None:
        self.weights, self.writer = weights, writer
        self._stored: list[tuple[str, ...]] = []

    def matrix(self, name: str) -> QuantizedMatrix | FloatMatrix:
        """A linear layer's numbers.

        Raises:
            StudentError: there is no such layer.
        """
        matrix = self.weights.matrices.get(name)
        if matrix is None:
            raise StudentError(f"the weights hold no matrix {name!r}; its name in the family's program is wrong")
        return matrix

    def can_join(self, names: tuple[str, ...]) -> bool:
        """Whether several linear layers can run as one product: of one kind and of one shape."""
        matrices = [self.matrix(name) for name in names]
        return len({(type(matrix), _sizes(matrix)) for matrix in matrices}) == 1

    def product(
        self, graph: OnnxGraph, x: Hidden, names: tuple[str, ...], site: str, relu: bool
    ) -> tuple[Hidden, bool]:
        """Linear layers that can join, side by side; and whether the ReLU asked for is in them.

        Raises:
            StudentError: a layer that is not in the weights, or int8 weights at a static site without grids.
        """
        quantized: list[QuantizedMatrix] = []
        floats: list[FloatMatrix] = []
        for name in names:
            matrix = self.matrix(name)
            if isinstance(matrix, QuantizedMatrix):
                quantized.append(matrix)
            else:
                floats.append(matrix)
        if floats:
            return self._float(x, graph.real(x), names, floats, site), False
        if self.weights.precision == "w8a8-dynamic":
            return self._dynamic(x, graph.dynamic(x), names, quantized, site), False
        grids = self.weights.sites.get(site)
        if grids is None:
            raise StudentError(f"the site {site!r} has int8 weights and no activation grids; calibrate it first")
        return self._static(graph, x, names, quantized, site, grids), relu and grids.output.zero_point == -128

    def _float(self, x: Hidden, source: str, names: tuple[str, ...], matrices: list[FloatMatrix], site: str) -> Hidden:
        weight = np.concatenate([matrix.weight for matrix in matrices])
        inputs = [source, self._weight(names, weight, axis=0)]
        bias = _joined_bias([(matrix.bias, len(matrix.weight)) for matrix in matrices])
        if bias is not None:
            inputs.append(self.writer.stored(f"{'|'.join(names)}.bias", bias))
        name = self.writer.node("Gemm", inputs, name=_node_name(site, names), transB=1)
        return Hidden(x.layout, len(weight), name)

    def _dynamic(
        self,
        x: Hidden,
        entering: tuple[str, str, str],
        names: tuple[str, ...],
        matrices: list[QuantizedMatrix],
        site: str,
    ) -> Hidden:
        integers, scale, zero_point = entering
        rows = np.concatenate([matrix.integers for matrix in matrices])
        scales = np.concatenate([matrix.scales for matrix in matrices])
        stored_scales = self.writer.stored(f"{'|'.join(names)}.scales", scales)
        inputs = [integers, self._weight(names, rows.T, axis=1), scale, stored_scales, zero_point]
        bias = _joined_bias([(matrix.bias, len(matrix.scales)) for matrix in matrices])
        if bias is not None:
            inputs += ["", self.writer.stored(f"{'|'.join(names)}.bias", bias)]
        name = self.writer.node("MatMulIntegerToFloat", inputs, domain=CONTRIB, name=_node_name(site, names))
        return Hidden(x.layout, len(rows), name)

    def _static(
        self,
        graph: OnnxGraph,
        x: Hidden,
        names: tuple[str, ...],
        matrices: list[QuantizedMatrix],
        site: str,
        grids: SiteGrids,
    ) -> Hidden:
        ends = {}
        for end, grid in (("input", grids.input), ("output", grids.output)):
            scale = self.writer.stored(f"{site}.{end}_scale", np.float32(grid.scale))
            ends[end] = scale, self.writer.stored(f"{site}.{end}_zero_point", np.uint8(grid.zero_point + 128))
        node_name = _node_name(site, names)
        rows = np.concatenate([matrix.integers for matrix in matrices])
        scales = np.concatenate([matrix.scales for matrix in matrices])
        bias = np.concatenate([bias_integers(matrix, grids.input) for matrix in matrices])
        inputs = [
            graph.quantized(x, grids.input, *ends["input"]),
            *ends["input"],
            self._weight(names, rows, axis=0),
            self.writer.stored(f"{'|'.join(names)}.scales", scales),
            self.writer.stored(f"{node_name}.zero_points", np.zeros(len(rows), np.int8)),
            self.writer.stored(f"{node_name}.bias", bias),
            *ends["output"],
        ]
        name = self.writer.node("QGemm", inputs, domain=CONTRIB, name=node_name, transB=1)
        return Hidden(x.layout, len(rows), None, {grids.output: name}, grids.output)

    def _weight(self, names: tuple[str, ...], joined: NDArray[np.int8] | NDArray[np.float32], axis: int) -> str:
        """A weight for one node, its matrices side by side along ``axis``; stored once where layers share it.

        Every use after the first goes through a node that ONNX Runtime folds while loading. Two int8 products that
        read one constant could not be loaded with ``session.x64quantprecision``: ONNX Runtime makes the uint8 form of
        it for each under one and the same name.
        """
        for known in self._stored:
            for first in range(len(known) - len(names) + 1):
                if known[first : first + len(names)] != names:
                    continue
                stored = "|".join(known)
                if known == names and joined.dtype == np.float32:
                    return stored
                if known == names:
                    return self.writer.node("Concat", [stored], axis=axis)
                size = joined.shape[axis] // len(names)
                bounds = (first * size, (first + len(names)) * size, axis)
                return self.writer.node("Slice", [stored, *(self.writer.integers(bound) for bound in bounds)])
        self._stored.append(names)
        return self.writer.stored("|".join(names), joined)


def _sizes(matrix: QuantizedMatrix | FloatMatrix) -> tuple[int, ...]:
    return matrix.integers.shape if isinstance(matrix, QuantizedMatrix) else matrix.weight.shape


def _node_name(site: str, names: tuple[str, ...]) -> str:
    return f"{site}:{'|'.join(names)}"


def _joined_bias(biases: list[tuple[NDArray[np.float32] | None, int]]) -> NDArray[np.float32] | None:
    if all(bias is None for bias, _ in biases):
        return None
    return np.concatenate([np.zeros(rows, np.float32) if bias is None else bias for bias, rows in biases])
