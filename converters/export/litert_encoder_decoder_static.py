"""Linear layers of an encoder-decoder's LiteRT programs on static grids (``w8a8-static``).

``QUANTIZE`` on the grid of what enters a site, ``FULLY_CONNECTED`` int8, ``DEQUANTIZE``, all of which XNNPACK takes
over; what is rounded once serves every layer that reads it on that grid. Tensors are named ``<site>/input`` and
``<site>/output``, as in :mod:`~edgescribe.converters.export.litert_graph`.
"""

from __future__ import annotations

import numpy as np

from ...errors import StudentError
from ..quantized_weights import Grid, QuantizedMatrix, QuantizedTable, SiteGrids, bias_integers
from .litert_decoder_layers import LOGITS, LiteRtLayers, Value, Weight
from .litert_flatbuffer import Quantization


class StaticLayers(LiteRtLayers):
    """Puts static products in the place of float and dynamic ones where the precision is ``w8a8-static``."""

    def _product(self, x: Value, names: tuple[str, ...], site: str, relu: bool = False) -> int:
        if not self._is_static:
            return super()._product(x, names, site, relu)
        matrix, name = self._joint(names)
        return self._static_product(x, matrix, name, site, relu)

    def logits(self, x: Value, weight: str) -> Value:
        """See DecoderBuilder."""
        table = self._weights.tables.get(weight)
        if not self._is_static or not isinstance(table, QuantizedTable):
            return super().logits(x, weight)
        matrix = QuantizedMatrix(table.integers, table.scales, None)
        return self._value(self._static_product(x, matrix, weight, LOGITS, False))

    @property
    def _is_static(self) -> bool:
        return self._weights.precision == "w8a8-static"

    def _static_product(self, x: Value, matrix: Weight, name: str, site: str, relu: bool) -> int:
        if not isinstance(matrix, QuantizedMatrix):
            raise StudentError(f"the layer {name!r} has no int8 weights, and static grids are for such alone")
        grids: SiteGrids = self._find("activation grids of", self._weights.sites, site)
        bias = -1
        if matrix.bias is not None:
            scales = matrix.scales * np.float32(grids.input.scale)
            on_accumulator = Quantization(tuple(float(scale) for scale in scales), (0,) * len(scales))
            bias = self._graph.constant(f"{name}/bias", bias_integers(matrix, grids.input), on_accumulator)
        source = self._real(x)
        entered = self._once(
            ("entered", source, grids.input),
            lambda: self._ops.quantize(source, _quantization(grids.input), f"{site}/input"),
        )
        weights = self._once(("weights", name), lambda: self._constant(name, matrix))
        leaving = _quantization(grids.output)
        return self._ops.dequantize(
            self._ops.fully_connected(entered, weights, bias, f"{site}/output", leaving, relu)
        )


def _quantization(grid: Grid) -> Quantization:
    return Quantization((float(grid.scale),), (grid.zero_point,))
