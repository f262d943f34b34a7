"""Linear layers of the OpenVINO model that reads a source: hundreds of rows at once.

Int8 layers are in the form of :mod:`~edgescribe.converters.export.openvino_products` for the precision
``w8a8-dynamic``: each token is rounded by its own largest magnitude, as the torch reference does it, and the plugin
makes one u8 x i8 product of it. For hundreds of rows that takes two thirds of the time of the form that decoders have
(OpenVINO 2026.4, x86-64 with VNNI), and gives results nearer to the reference. The constants are the same, so that
those of both models are stored once. Rows of int8 tables are gathered as integers and widened after: among such
products the plugin would widen a whole table.

But the plugin keeps the integers of such products twice, where it leaves a decoder's in the mapped file: students of
more than :data:`MOST_BYTES` are in the form that decoders have. On x86-64 without VNNI sums saturate, as they do in
encoders: known answers tell.
"""

from __future__ import annotations

import openvino.opset13 as ops

from ..quantized_weights import QuantizedMatrix, QuantizedWeights
from .openvino_decoder_products import DecoderProducts
from .openvino_nodes import NamedConstants, Node, integers
from .openvino_products import Products

MOST_BYTES = 64 << 20
"""Int8 weights of both programs up to which memory is spent for speed."""


class SourceProducts(DecoderProducts):
    """Writes the linear layers and tables of one model as the module tells; in other precisions as a decoder's."""

    def __init__(self, weights: QuantizedWeights) -> None:
        super().__init__(weights)
        self._grids = Products(weights, NamedConstants())
        size = sum(each.integers.nbytes for each in weights.matrices.values() if isinstance(each, QuantizedMatrix))
        self._rounds_tokens = weights.precision == "w8a8-dynamic" and size <= MOST_BYTES

    def rows(self, ids: Node, table: str) -> Node:
        """See DecoderProducts."""
        matrix = self.matrix(table)
        if not self._rounds_tokens or not isinstance(matrix, QuantizedMatrix):
            return super().rows(ids, table)
        call = self._call(f"rows:{table}")
        self.heights[table] = [len(matrix.scales)]
        codes, scales = (ops.gather(part, ids, integers(0)) for part in self._rows_of(table, [matrix]))
        return ops.multiply(ops.convert(codes, "f32"), scales, name=call)

    def _multiplied(self, x: Node, names: tuple[str, ...], call: str) -> Node:
        if not self._rounds_tokens:
            return super()._multiplied(x, names, call)
        entered, largest = self._grids.on_grid_of_token(x, call.removeprefix("linear:"))
        return ops.multiply(ops.matmul(entered, self._weight(names), False, True, name=call), largest)
