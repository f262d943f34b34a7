"""Linear layers of the graph that reads the source: hundreds of rows at once, each weight used once.

Int8 layers run as com.microsoft MatMulIntegerToFloat: on 512 rows two to four times as fast as MatMulNBits (ONNX
Runtime 1.31, x86-64 with VNNI), with each row of activations on a grid of its own, as the torch reference rounds them.
The integers, int8 ``[in, out]``, lie in the file as the kernel reads them, so that they need not be packed when the
artifact is opened: they stay mapped and may leave memory as soon as the source is read. Int4 layers, float layers and
tables are as in :mod:`.onnx_decoder_products`.
"""

from __future__ import annotations

import numpy as np

from ..quantized_weights import QuantizedMatrix, QuantizedWeights
from .onnx_decoder_data import ExternalNodeWriter
from .onnx_decoder_products import DecoderProducts, joined_bias
from .onnx_nodes import CONTRIB

MIDDLE = 128
"""Zero point of the activations' uint8 grid, which is symmetric around it."""

SMALLEST_STEP = 1e-30
"""Step of a row of zeros."""


class SourceProducts(DecoderProducts):
    """Writes linear layers as the module tells; ``packed`` counts int8 layers as they are in the file."""

    def __init__(self, weights: QuantizedWeights, writer: ExternalNodeWriter) -> None:
        super().__init__(weights, writer)
        self._rounded: dict[str, tuple[str, str]] = {}

    def product(self, x: str, names: tuple[str, ...], site: str) -> str:
        """See DecoderProducts."""
        found = [self.matrix(name) for name in names]
        matrices = [each for each in found if isinstance(each, QuantizedMatrix)]
        if len(matrices) < len(found):
            return super().product(x, names, site)
        stored, heights = "|".join(names), [len(each.scales) for each in matrices]
        integers, steps = self._rows(x)
        weight = np.concatenate([each.integers for each in matrices])
        self.packed += weight.nbytes
        node, constant = self.writer.node, self.writer.constant
        inputs = [
            integers,
            self.writer.stored(f"{stored}.across", weight.T),
            constant(np.float32(1)),
            self.writer.stored(f"{stored}.scales", np.concatenate([each.scales for each in matrices])),
            constant(np.uint8(MIDDLE)),
        ]
        result = node("MatMulIntegerToFloat", inputs, domain=CONTRIB, name=f"{site}:{stored}")
        self.writer.nodes[-1].metadata_props.add(key="rows", value=",".join(str(height) for height in heights))
        result = node("Mul", [result, steps])
        bias = joined_bias(found, heights)
        return result if bias is None else node("Add", [result, self.writer.stored(f"{stored}.bias", bias)])

    def _rows(self, x: str) -> tuple[str, str]:
        """``x`` ``[1, S, W]`` as uint8, and the step of each row, float32 ``[1, S, 1]``; made once for each ``x``."""
        if x not in self._rounded:
            node, constant, integers = self.writer.node, self.writer.constant, self.writer.integers
            largest = node("ReduceMax", [x, integers(-1)], keepdims=0)
            if not self._is_positive(x):
                least = node("ReduceMin", [x, integers(-1)], keepdims=0)
                largest = node("Max", [largest, node("Neg", [least])])
            steps = node("Mul", [largest, constant(np.float32(1 / 127))])
            steps = node("Reshape", [node("Max", [steps, constant(np.float32(SMALLEST_STEP))]), integers(-1)])
            middle = node("Expand", [constant(np.uint8(MIDDLE)), node("Shape", [steps])])
            rounded = node("QuantizeLinear", [x, steps, middle], axis=1)
            self._rounded[x] = rounded, node("Reshape", [steps, integers(1, -1, 1)])
        return self._rounded[x]

    def _is_positive(self, x: str) -> bool:
        return any(node.op_type == "Relu" and x in node.output for node in self.writer.nodes)
