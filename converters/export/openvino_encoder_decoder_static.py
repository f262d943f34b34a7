"""Linear layers and tables of an encoder-decoder's OpenVINO models on static grids (``w8a8-static``).

A layer is in the static form of :mod:`~edgescribe.converters.export.openvino_products`, whose names of grids it has:
the CPU plugin makes one u8 x i8 product of it, whose last steps round to the output grid. Layers of one site that read
one value share both grids and are one product. Rows of tables are gathered as integers and widened after: among such
products the plugin would widen a whole table.
"""

from __future__ import annotations

import numpy as np
import openvino.opset13 as ops

from ...errors import StudentError
from ..quantized_weights import QuantizedMatrix, QuantizedWeights, SiteGrids, bias_integers
from .openvino_decoder_products import DecoderProducts
from .openvino_nodes import NamedConstants, Node, integers
from .openvino_products import Products


class StaticProducts(DecoderProducts):
    """Writes the linear layers and tables of one model as the module tells."""

    def __init__(self, weights: QuantizedWeights) -> None:
        super().__init__(weights)
        self._sites = Products(weights, NamedConstants())

    def rectifies(self, site: str) -> bool:
        """See DecoderProducts."""
        return self._grids(site).output.zero_point == -128

    def product(self, x: Node, names: tuple[str, ...], site: str) -> Node:
        """See DecoderProducts.

        Raises:
            StudentError: the site has no activation grids, or a layer has no int8 weights.
        """
        grids, matrices = self._grids(site), [self._int8(name) for name in names]
        call = self._call(f"linear:{site}")
        y = ops.matmul(self._sites.entering(x, grids.input, site), self._weight(names), False, True, name=call)
        if any(matrix.bias is not None for matrix in matrices):
            unit = float(grids.input.scale)
            parts = [bias_integers(each, grids.input) * (each.scales.astype(np.float64) * unit) for each in matrices]
            bias = np.concatenate(parts).astype(np.float32)
            y = ops.add(y, self._constants.get(f"bias:{'|'.join(names)}:{site}", bias), name=f"{call}/bias")
        return self._sites.leaving(y, grids.output, site)

    def rows(self, ids: Node, table: str) -> Node:
        """See DecoderProducts."""
        matrix = self._int8(table)
        self.heights[table] = [len(matrix.scales)]
        codes, scales = (ops.gather(part, ids, integers(0)) for part in self._rows_of(table, [matrix]))
        return ops.multiply(ops.convert(codes, "f32"), scales, name=self._call(f"rows:{table}"))

    def _grids(self, site: str) -> SiteGrids:
        grids = self._weights.sites.get(site)
        if grids is None:
            raise StudentError(f"the site {site!r} has int8 weights and no activation grids; calibrate it first")
        return grids

    def _int8(self, name: str) -> QuantizedMatrix:
        matrix = self.matrix(name)
        if not isinstance(matrix, QuantizedMatrix):
            raise StudentError(f"the layer {name!r} has no int8 weights, and static grids are for such alone")
        return matrix
