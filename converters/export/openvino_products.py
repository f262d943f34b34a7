"""Linear layers in an OpenVINO model, written so that the CPU plugin's low precision passes run them on int8.

- float: ``MatMul`` with a float32 constant.
- static: what enters is quantised (``FakeQuantize`` to 0 … 255, ``Convert`` u8) and dequantised (``Convert``,
  ``Subtract`` zero point, ``Multiply`` scale), the weight is ``Convert`` and ``Multiply`` of an int8 constant: the
  plugin makes one u8 x i8 product of it. What leaves is rounded by ``Divide``, ``Round``, ``Clamp``, ``Multiply``,
  which the product takes in as its last steps. (A second quantise and dequantise is correct too, but the passes
  then carry int8 through the transposes of attention, which have no fast int8 form: 14 % slower.)
- dynamic: each token is divided by its own largest magnitude / 127, quantised and dequantised as if its grid were
  static with the zero point 0 and the scale 1/127, and the product multiplied by the magnitude: u8 x i8. (Signed
  activations would do on x86; the int8 product that the plugin takes for them on ARM is wrong where each channel
  of the weight has its own scale, in OpenVINO 2026.4. The plugin's own dynamic quantisation is no faster at its
  best, depends on an option, takes other grids and is not to be seen in the compiled graph.)

On x86 processors without VNNI the plugin's int8 kernels add pairs of products in 16 bits, which saturate: sums of
large activations with large weights come out too small, and AVX2's are slower than float32's. Take ``fp32`` there.

Names that :mod:`~edgescribe.converters.export.openvino` reads back: constants ``weight:<matrix>``,
``scales:<matrix>``, ``scale:input:<site>``, ``zero point:input:<site>``, ``scale:output:<site>``; ``Clamp`` nodes
``output:<site>``; products ``linear:<site>``. A site that is called again gets ``@2``, ``@3``, … behind it.
"""

from __future__ import annotations

import numpy as np
import openvino as ov
import openvino.opset13 as ops

from ...errors import StudentError
from ..quantized_weights import FloatMatrix, Grid, QuantizedMatrix, QuantizedWeights, SiteGrids, bias_integers
from .openvino_nodes import NamedConstants, Node, integers, number


class Products:
    """Writes linear layers into a model.

    Args:
        weights: matrices and grids.
        constants: the model's constants.
    """

    def __init__(self, weights: QuantizedWeights, constants: NamedConstants) -> None:
        self._weights = weights
        self._constants = constants
        self._calls: dict[str, int] = {}
        # By id of the value that enters; the value is kept so that its id stays its own.
        self._entered: dict[tuple[int, str], tuple[Node, Node]] = {}
        self._steps: dict[int, tuple[Node, Node, Node]] = {}

    def product(self, x: Node, name: str, site: str) -> Node:
        """``x @ Wᵀ + b`` of matrix ``name``, on the grids of ``site`` where the weights are static.

        Raises:
            StudentError: there is no such matrix, or no grids for this site.
        """
        matrix = self.matrix(name)
        call = self._call(f"linear:{site}")
        if isinstance(matrix, FloatMatrix):
            weight = self._constants.get(f"weight:{name}", matrix.weight.astype(np.float32))
            return self._with_bias(ops.matmul(x, weight, False, True, name=call), name, matrix, call)
        codes = self._constants.get(f"weight:{name}", matrix.integers)
        scales = self._constants.get(f"scales:{name}", matrix.scales.astype(np.float32)[:, None])
        weight = ops.multiply(ops.convert(codes, "f32"), scales)
        if self._weights.precision == "w8a8-dynamic":
            entered, step = self.on_grid_of_token(x, site)
            y = ops.multiply(ops.matmul(entered, weight, False, True, name=call), step)
            return self._with_bias(y, name, matrix, call)
        grids = self._weights.sites.get(site)
        if grids is None:
            raise StudentError(f"site {site!r} has no activation grids: {name!r} cannot be static int8; calibrate it")
        y = ops.matmul(self.entering(x, grids.input, site), weight, False, True, name=call)
        if matrix.bias is not None:
            unit = matrix.scales.astype(np.float64) * float(grids.input.scale)
            bias = (bias_integers(matrix, grids.input) * unit).astype(np.float32)
            y = ops.add(y, self._constants.get(f"bias:{name}:{site}", bias), name=f"{call}/bias")
        return self.leaving(y, grids.output, site)

    def rectifies(self, name: str, site: str) -> bool:
        """Whether the product's rounding to its output grid leaves nothing below nought: it then is a ReLU too."""
        grids = self._weights.sites.get(site)
        return grids is not None and grids.output.zero_point == -128 and isinstance(self.matrix(name), QuantizedMatrix)

    def matrix(self, name: str) -> QuantizedMatrix | FloatMatrix:
        """The linear layer ``name``.

        Raises:
            StudentError: there is none.
        """
        matrix = self._weights.matrices.get(name)
        if matrix is None:
            raise StudentError(f"the student has no linear layer {name!r}, which its family's program reads")
        return matrix

    def _call(self, name: str) -> str:
        self._calls[name] = self._calls.get(name, 0) + 1
        return name if self._calls[name] == 1 else f"{name}@{self._calls[name]}"

    def _with_bias(self, y: Node, name: str, matrix: QuantizedMatrix | FloatMatrix, call: str) -> Node:
        if matrix.bias is None:
            return y
        return ops.add(y, self._constants.get(f"bias:{name}", matrix.bias.astype(np.float32)), name=f"{call}/bias")

    def entering(self, x: Node, grid: Grid, site: str) -> Node:
        """``x`` on its int8 grid, written as u8 (zero point + 128)."""
        key = (id(x), site)
        if key not in self._entered:
            zero, scale = np.float32(grid.zero_point + 128), np.float32(grid.scale)
            low, high = number(-scale * zero), number(scale * (np.float32(255) - zero))
            name = self._call(f"input:{site}")
            codes = ops.fake_quantize(x, low, high, number(0), number(255), 256, name=name)
            widened = ops.convert(ops.convert(codes, "u8"), "f32")
            shifted = ops.subtract(widened, self._constants.get(f"zero point:input:{site}", np.asarray(zero)))
            y = ops.multiply(shifted, self._constants.get(f"scale:input:{site}", np.asarray(scale)))
            self._entered[key] = (x, y)
        return self._entered[key][1]

    def leaving(self, y: Node, grid: Grid, site: str) -> Node:
        """``y``, which leaves ``site``, rounded to its int8 grid, in float32."""
        scale = self._constants.get(f"scale:output:{site}", np.asarray(grid.scale, np.float32))
        steps = ops.round(ops.divide(y, scale), "half_to_even")
        low, high = float(-128 - grid.zero_point), float(127 - grid.zero_point)
        return ops.multiply(ops.clamp(steps, low, high, name=self._call(f"output:{site}")), scale)

    def on_grid_of_token(self, x: Node, site: str) -> tuple[Node, Node]:
        """``x`` as whole numbers in [-127, 127] over 127, and the largest magnitude of each token ``[…, 1]``."""
        if id(x) not in self._steps:
            largest = ops.maximum(ops.reduce_max(ops.abs(x), integers([-1]), True), number(1e-8))
            step = ops.multiply(largest, number(1 / 127))
            name = self._call(f"input:{site}")
            codes = ops.fake_quantize(
                ops.divide(x, step), number(-128), number(127), number(0), number(255), 256, name=name
            )  # fmt: skip
            shifted = ops.subtract(ops.convert(ops.convert(codes, "u8"), "f32"), number(128))
            self._steps[id(x)] = (x, ops.multiply(shifted, number(1 / 127)), largest)
        return self._steps[id(x)][1:]


def sites_of(model: ov.Model) -> dict[str, SiteGrids]:
    """The activation grids that a model holds, by site.

    Raises:
        KeyError: a grid is there in part.
    """
    constants: dict[str, float] = {}
    lows: dict[str, int] = {}
    for node in model.get_ops():
        name = node.get_friendly_name()
        if node.get_type_name() == "Constant" and name.startswith(("scale:", "zero point:")):
            constants[name] = np.asarray(node.data).item()
        elif node.get_type_name() == "Clamp" and name.startswith("output:") and "@" not in name:
            lows[name.removeprefix("output:")] = round(node.get_attributes()["min"])
    return {
        site: SiteGrids(
            Grid(constants[f"scale:input:{site}"], round(constants[f"zero point:input:{site}"]) - 128),
            Grid(constants[f"scale:output:{site}"], -128 - low),
        )
        for site, low in lows.items()
    }
