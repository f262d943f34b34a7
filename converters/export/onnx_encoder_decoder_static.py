"""Linear layers and tables of an encoder-decoder's ONNX graphs on static grids (``w8a8-static``).

A layer runs as com.microsoft QGemm, as in :mod:`.onnx_products`: what enters is rounded to uint8 on the site's input
grid (once for all layers that read it), bias and rounding to the output grid are inside, and the result is widened for
what is computed in float (attention with its cache, norms, gates). Layers of one site that read one value are one
product: they share both grids.

Integers of the graphs that read the source lie as ``[in, out]``, so that they need not be packed when the artifact is
opened (:mod:`.onnx_encoder_decoder_products`); those of the graph that writes as ``[out, in]``, so that the rows of a
table can be looked up in its head.
"""

from __future__ import annotations

import numpy as np

from ...errors import StudentError
from ..quantized_weights import Grid, QuantizedMatrix, QuantizedWeights, SiteGrids, bias_integers
from .onnx_decoder_data import ExternalNodeWriter
from .onnx_decoder_products import DecoderProducts
from .onnx_nodes import CONTRIB

ACROSS = ".across"
"""Behind the name of integers that lie as ``[in, out]``."""


class StaticProducts(DecoderProducts):
    """Writes linear layers and tables as the module tells.

    Args:
        weights: the numbers to store.
        writer: collects the graph's nodes.
        across: whether integers lie as ``[in, out]``.
    """

    def __init__(self, weights: QuantizedWeights, writer: ExternalNodeWriter, across: bool) -> None:
        super().__init__(weights, writer)
        self._across = across
        self._entered: dict[tuple[str, Grid], str] = {}

    def can_join(self, names: tuple[str, ...]) -> bool:
        """See DecoderProducts."""
        return not self._across and super().can_join(names)

    def rectifies(self, site: str) -> bool:
        """Whether what leaves a site is never below nought: its product is a ReLU too."""
        return self._grids(site).output.zero_point == -128

    def product(self, x: str, names: tuple[str, ...], site: str) -> str:
        """See DecoderProducts.

        Raises:
            StudentError: the site has no activation grids, or a layer has no int8 weights.
        """
        grids, matrices = self._grids(site), [self._int8(name) for name in names]
        stored, node = "|".join(names), self.writer.node
        weight = np.concatenate([each.integers for each in matrices])
        self.packed += weight.nbytes
        bias = ""
        if any(each.bias is not None for each in matrices):
            integers = np.concatenate([bias_integers(each, grids.input) for each in matrices])
            bias = self.writer.stored(f"{site}:{stored}.bias", integers)
        inputs = [
            self._entering(x, grids.input, weight.shape[1]),
            *self._ends(grids.input),
            self.writer.stored(stored + ACROSS, weight.T) if self._across else self.writer.stored(stored, weight),
            self.writer.stored(f"{stored}.scales", np.concatenate([each.scales for each in matrices])),
            # Not shared: ONNX Runtime makes a uint8 form of each product's own where quick products saturate.
            self.writer.stored(f"{site}:{stored}.zero_points", np.zeros(len(weight), np.int8)),
            bias,
            *self._ends(grids.output),
        ]
        result = node("QGemm", inputs, domain=CONTRIB, name=f"{site}:{stored}", transB=int(not self._across))
        rows = ",".join(str(len(each.scales)) for each in matrices)
        self.writer.nodes[-1].metadata_props.add(key="rows", value=rows)
        cube = node("Reshape", [result, self.writer.integers(1, -1, len(weight))])
        return node("DequantizeLinear", [cube, *self._ends(grids.output)])

    def rows(self, ids: str, table: str) -> str:
        """See DecoderProducts."""
        matrix, node, integers = self._int8(table), self.writer.node, self.writer.integers
        self.tables += matrix.integers.nbytes
        flat = node("Reshape", [ids, integers(-1)])
        found = node("Gather", [self.writer.stored(table, matrix.integers), flat], name=f"rows:{table}")
        scales = node("Gather", [self.writer.stored(f"{table}.scales", matrix.scales), flat])
        return node("Unsqueeze", [node("DequantizeLinear", [found, scales], axis=0), integers(0)])

    def _grids(self, site: str) -> SiteGrids:
        grids = self.weights.sites.get(site)
        if grids is None:
            raise StudentError(f"the site {site!r} has int8 weights and no activation grids; calibrate it first")
        return grids

    def _int8(self, name: str) -> QuantizedMatrix:
        matrix = self.matrix(name)
        if not isinstance(matrix, QuantizedMatrix):
            raise StudentError(f"the layer {name!r} has no int8 weights, and static grids are for such alone")
        return matrix

    def _entering(self, x: str, grid: Grid, width: int) -> str:
        """``x`` ``[1, T, W]`` as uint8 ``[T, W]`` on ``grid``; made once for each."""
        if (x, grid) not in self._entered:
            rounded = self.writer.node("QuantizeLinear", [x, *self._ends(grid)])
            shape = self.writer.integers(-1, width)
            self._entered[x, grid] = self.writer.node("Reshape", [rounded, shape])
        return self._entered[x, grid]

    def _ends(self, grid: Grid) -> list[str]:
        """Scale and zero point of a grid, for uint8."""
        zero_point = np.uint8(grid.zero_point + 128)
        return [self.writer.constant(np.float32(grid.scale)), self.writer.constant(zero_point)]

