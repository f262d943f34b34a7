"""Writes a family's program as an ONNX graph for ONNX Runtime's CPU kernels, from one QuantizedWeights.

The forms below were the fastest of those tried on ONNX Runtime 1.31 (batch 1, 128 tokens):

- static: com.microsoft QGemm written directly, uint8 activations by int8 weights, bias and requantisation inside;
  neighbours with equal grids pass integers on. int8 activations would fall to reference kernels on x86-64.
- dynamic: DynamicQuantizeLinear (one range for the whole tensor) with com.microsoft MatMulIntegerToFloat; linear
  layers that read the same value share its quantisation. MatMulNBits (a range for each block) took twice as long.
- attention: query, key and value are cut apart while still uint8; ONNX's Attention with an additive mask took four
  fifths of the time of separate products and softmax, and MultiHeadAttention more than both.
- layer norms: Add and LayerNormalization on two axes; SkipLayerNormalization was several times slower.

On x86-64 without VNNI, ONNX Runtime's uint8 x int8 kernels add pairs of products in saturating 16 bits: there a
session must set ``session.x64quantprecision`` to 1, which makes it take exact, slower kernels. With VNNI it must not,
because the same setting would give up the fast kernels, which are exact.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ...errors import StudentError
from ..graph import ActivationKind
from ..quantized_weights import Grid, QuantizedMatrix, QuantizedTable, QuantizedWeights
from . import onnx_relative as relative
from .onnx_nodes import CONTRIB, NodeWriter
from .onnx_products import ProductWriter
from .onnx_values import Hidden, Integers, Joined, Scores

PENALTY = -1e4
"""Added to the scores of padding: ``exp`` of it is nought in float32."""


class OnnxGraph:
    """Implements :class:`~edgescribe.converters.graph.GraphBuilder` by appending ONNX nodes.

    Args:
        weights: the numbers to store.
        positions: most tokens that the student takes; relative positions are stored up to it.
    """

    training = False
    whole_layers = False

    def __init__(self, weights: QuantizedWeights, positions: int) -> None:
        self.weights, self.positions = weights, positions
        self.writer = NodeWriter()
        self.inputs = ["input_ids", "attention_mask"]
        self._kept: dict[tuple[object, ...], str] = {}
        self._products = ProductWriter(weights, self.writer)

    def kept(self, key: tuple[object, ...], make: Callable[[], str]) -> str:
        """The name of a value that many operators want: made at its first use."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    # Sizes known while running
    def tokens(self) -> str:
        """T as int64 ``[1]``."""
        return self.kept(("tokens",), lambda: self.writer.node("Shape", ["input_ids"], start=1, end=2))

    def shape_with_tokens(self, *sizes: int) -> str:
        """An int64 shape; 0 among the ``sizes`` stands for T, -1 for what remains."""

        def make() -> str:
            place = sizes.index(0)
            parts = [sizes[:place], sizes[place + 1 :]]
            before, after = ([self.writer.integers(*part)] if part else [] for part in parts)
            return self.writer.node("Concat", [*before, self.tokens(), *after], axis=0)

        return self.kept(("shape", sizes), make)

    def reshaped(self, value: str, *sizes: int) -> str:
        """``value`` in another shape; see :meth:`shape_with_tokens`."""
        shape = self.shape_with_tokens(*sizes) if 0 in sizes else self.writer.integers(*sizes)
        return self.writer.node("Reshape", [value, shape])

    # Inputs and outputs
    def token_ids(self) -> Integers:
        """See GraphBuilder."""
        return Integers("input_ids")

    def token_mask(self) -> Integers:
        """See GraphBuilder."""
        return Integers("attention_mask")

    def token_types(self) -> Integers:
        """See GraphBuilder."""
        if "token_type_ids" not in self.inputs:
            self.inputs.append("token_type_ids")
        return Integers("token_type_ids")

    def output(self, name: str, value: Hidden) -> None:
        """See GraphBuilder."""
        if value.layout == "tokens":
            cube = self.reshaped(self.real(value), -1, 0, value.width)
            self.writer.declare_output(name, cube, ["batch", "tokens", value.width])
        else:
            self.writer.declare_output(name, self.real(value), ["batch", value.width])

    # Forms of a hidden value
    def real(self, x: Hidden) -> str:
        """``x`` in float32."""
        if x.real is None:
            if x.joined is not None:
                self._cut(x)
            if x.real is None:
                if x.grid is None:
                    raise ValueError("a hidden value has no form that it was made in")
                x.real = self.dequantized(x.integers[x.grid], x.grid)
        return x.real

    def dequantized(self, integers: str, grid: Grid) -> str:
        """uint8 ``integers`` on ``grid`` in float32."""
        return self.writer.node("DequantizeLinear", [integers, *self._grid(grid)])

    def _grid(self, grid: Grid) -> list[str]:
        return [self.writer.constant(np.float32(grid.scale)), self.writer.constant(np.uint8(grid.zero_point + 128))]

    def quantized(self, x: Hidden, grid: Grid, scale: str, zero_point: str) -> str:
        """``x`` as uint8 on ``grid``; the integers that it was made of where they are on this grid already."""
        if x.joined is not None:
            self._cut(x)
        if grid not in x.integers:
            x.integers[grid] = self.writer.node("QuantizeLinear", [self.real(x), scale, zero_point])
        return x.integers[grid]

    def dynamic(self, x: Hidden) -> tuple[str, str, str]:
        """``x`` as uint8 on a grid taken while running, with scale and zero point."""
        if x.dynamic is None:
            integers, scale, zero_point = self.writer.node_of("DynamicQuantizeLinear", [self.real(x)], 3)
            x.dynamic = integers, scale, zero_point
        return x.dynamic

    def _cut(self, x: Hidden) -> None:
        """Cut the parts out of the product that ``x`` is one of, unless that was done."""
        joined = x.joined
        if joined is None or x.real is not None or x.integers:
            return
        whole = joined.value
        source = whole.real if whole.grid is None else whole.integers[whole.grid]
        names = self.writer.node_of("Split", [source or ""], joined.parts, axis=1, num_outputs=joined.parts)
        for row, name in zip(joined.rows, names, strict=True):
            if whole.grid is None:
                row.real = name
            else:
                row.grid, row.integers = whole.grid, {whole.grid: name}

    # Embeddings
    def embedding(self, ids: Integers, table: str) -> Hidden:
        """See GraphBuilder."""
        flat = self.kept(("flat", ids.name), lambda: self.reshaped(ids.name, -1))
        rows, scales, width = self._table(table)
        found = self.writer.node("Gather", [rows, flat], axis=0)
        if scales:
            found = self._rows(found, self.writer.node("Gather", [scales, flat], axis=0))
        return Hidden("tokens", width, found)

    def position_embedding(self, table: str, start: int = 0) -> Hidden:
        """See GraphBuilder."""
        rows, scales, width = self._table(table)
        first, end = self.writer.integers(start), self.tokens()
        if start:
            end = self.kept(("end", start), lambda: self.writer.node("Add", [self.tokens(), first]))
        axis = self.writer.integers(0)
        found = self.writer.node("Slice", [rows, first, end, axis])
        if scales:
            found = self._rows(found, self.writer.node("Slice", [scales, first, end, axis]))
        return Hidden("places", width, found)

    def table_row(self, table: str, row: int) -> Hidden:
        """See GraphBuilder."""
        rows, scales, width = self._table(table)
        index = self.writer.integers(row)
        found = self.writer.node("Gather", [rows, index], axis=0)
        if scales:
            found = self._rows(found, self.writer.node("Gather", [scales, index], axis=0))
        return Hidden("vector", width, found)

    def _table(self, name: str) -> tuple[str, str, int]:
        """Names of a table's rows and of their scales (empty for a float table), and its width."""
        table = self.weights.tables.get(name)
        if table is None:
            raise StudentError(f"the weights hold no table {name!r}; its name in the family's program is wrong")
        if isinstance(table, QuantizedTable):
            scales = self.writer.stored(f"{name}.scales", table.scales.astype(np.float32))
            return self.writer.stored(name, table.integers), scales, table.integers.shape[1]
        return self.writer.stored(name, table.astype(np.float32)), "", table.shape[1]

    def _rows(self, rows: str, scales: str) -> str:
        return self.writer.node("DequantizeLinear", [rows, scales], axis=0)

    def mark_layer(self, x: Hidden, layer: int) -> None:
        """See GraphBuilder."""

    # Layers
    def linear(self, x: Hidden, weight: str, site: str, activation: ActivationKind | None = None) -> Hidden:
        """See GraphBuilder."""
        return self._product(x, (weight,), site, activation)

    def linears(self, x: Hidden, weights: tuple[str, ...], site: str) -> tuple[Hidden, ...]:
        """See GraphBuilder."""
        if len(weights) == 1 or not self._products.can_join(weights):
            return tuple(self._product(x, (name,), site, None) for name in weights)
        whole = self._product(x, weights, site, None)
        joined = Joined(len(weights), whole)
        width = whole.width // len(weights)
        joined.rows = [Hidden(whole.layout, width, joined=joined, part=part) for part in range(joined.parts)]
        return tuple(joined.rows)

    def _product(self, x: Hidden, names: tuple[str, ...], site: str, activation: ActivationKind | None) -> Hidden:
        y, done = self._products.product(self, x, names, site, activation == "relu")
        return y if done or activation is None else self.activation(y, activation)

    def layer_norm(self, x: Hidden, norm: str, eps: float, residual: Hidden | None = None) -> Hidden:
        """See GraphBuilder."""
        if residual is not None:
            x = self._sum(x, residual)
        gain, bias = (self._vector(f"{norm}.{part}") for part in ("weight", "bias"))
        name = self.writer.node("LayerNormalization", [self.real(x), gain, bias], axis=-1, epsilon=eps)
        return Hidden(x.layout, x.width, name)

    def _vector(self, name: str) -> str:
        return self.writer.stored(name, self.vector(name).reshape(-1))

    def vector(self, name: str) -> NDArray[np.float32]:
        """A small parameter, or a small table of relative positions or segments, in float32."""
        vector: NDArray[np.float32] | QuantizedTable | None = self.weights.vectors.get(name)
        if vector is None:
            vector = self.weights.tables.get(name.removesuffix(".weight"))
        if isinstance(vector, QuantizedTable):
            return vector.dequantized()
        if vector is None:
            raise StudentError(f"the weights hold no vector {name!r}; its name in the family's program is wrong")
        return np.asarray(vector, np.float32)

    def matrix_in_float(self, name: str) -> NDArray[np.float32]:
        """A linear layer's weight ``[out, in]`` in float32, dequantised where it is int8."""
        matrix = self._products.matrix(name)
        return matrix.dequantized() if isinstance(matrix, QuantizedMatrix) else np.asarray(matrix.weight, np.float32)

    def activation(self, x: Hidden, kind: ActivationKind) -> Hidden:
        """See GraphBuilder."""
        source = self.real(x)
        if kind == "relu":
            name = self.writer.node("Relu", [source])
        elif kind == "tanh":
            name = self.writer.node("Tanh", [source])
        elif kind == "silu":
            name = self.writer.node("QuickGelu", [source], domain=CONTRIB, alpha=1.0)
        else:
            name = self.writer.node("Gelu", [source], approximate="tanh" if kind == "gelu_tanh" else "none")
        return Hidden(x.layout, x.width, name)

    def add(self, a: Hidden | Scores, b: Hidden | Scores) -> Hidden | Scores:
        """See GraphBuilder."""
        if isinstance(a, Hidden) and isinstance(b, Hidden):
            return self._sum(a, b)
        if isinstance(a, Scores) and isinstance(b, Scores):
            return Scores(self.writer.node("Add", [a.name, b.name]))
        raise TypeError("scores of pairs of tokens can be added to scores alone")

    def _sum(self, a: Hidden, b: Hidden) -> Hidden:
        layouts = {a.layout, b.layout}
        if layouts == {"tokens", "places"}:
            tokens, places = (a, b) if a.layout == "tokens" else (b, a)
            cube = self.reshaped(self.real(tokens), -1, 0, tokens.width)
            total = self.writer.node("Add", [cube, self.real(places)])
            return Hidden("tokens", a.width, self.reshaped(total, -1, tokens.width))
        if len(layouts) == 2 and "vector" not in layouts:
            raise TypeError(f"values of the layouts {a.layout} and {b.layout} cannot be added")
        layout = b.layout if a.layout == "vector" else a.layout
        return Hidden(layout, a.width, self.writer.node("Add", [self.real(a), self.real(b)]))

    def add_vector(self, x: Hidden, vector: str) -> Hidden:
        """See GraphBuilder."""
        return Hidden(x.layout, x.width, self.writer.node("Add", [self.real(x), self._vector(vector)]))

    def attention(
        self,
        query: Hidden,
        key: Hidden,
        value: Hidden,
        mask: Integers,
        heads: int,
        bias: Scores | None = None,
        scale: float | None = None,
    ) -> Hidden:
        """See GraphBuilder."""
        scale = (query.width // heads) ** -0.5 if scale is None else scale
        inputs = [self._cube(part) for part in (query, key, value)]
        inputs.append(self._penalty(mask, bias, scale, query.layout == "tokens"))
        context = self.writer.node("Attention", inputs, q_num_heads=heads, kv_num_heads=heads, scale=scale)
        return Hidden(query.layout, value.width, self.reshaped(context, -1, value.width))

    def _penalty(self, mask: Integers, bias: Scores | None, scale: float, every_token: bool) -> str:
        """What is added to scaled scores: ``[B, 1, Tq, T]``, or ``[B, H, T, T]`` with a bias."""

        def make() -> str:
            keep = self.writer.node("Cast", [mask.name], to=9)
            zero, penalty = self.writer.constant(np.float32(0)), self.writer.constant(np.float32(PENALTY))
            return self.reshaped(self.writer.node("Where", [keep, zero, penalty]), -1, 1, 1, 0)

        padding = self.kept(("padding", mask.name), make)
        if bias is None and every_token:
            square = self.shape_with_tokens(1, 1, 0, 1)
            return self.kept(("wide", mask.name), lambda: self.writer.node("Expand", [padding, square]))
        if bias is None:
            return padding

        def with_bias() -> str:
            scaled = bias.name
            if scale != 1.0:
                scaled = self.writer.node("Mul", [scaled, self.writer.constant(np.float32(scale))])
            return self.writer.node("Add", [scaled, padding])

        return self.kept(("padding", mask.name, bias.name, scale), with_bias)

    def _cube(self, x: Hidden) -> str:
        """Float32 ``[B, Tq, W]``; the parts of one product are cut apart while they are still uint8."""
        joined = x.joined
        if joined is None or x.layout != "tokens":
            return self.reshaped(self.real(x), -1, 0 if x.layout == "tokens" else 1, x.width)
        grid = joined.value.grid
        if not joined.cubes:
            whole = joined.value.integers[grid] if grid is not None else self.real(joined.value)
            wide = self.reshaped(whole, -1, 0, joined.value.width)
            joined.cubes = self.writer.node_of("Split", [wide], joined.parts, axis=2, num_outputs=joined.parts)
        return joined.cubes[x.part] if grid is None else self.dequantized(joined.cubes[x.part], grid)

    def heads(self, x: Hidden, heads: int) -> str:
        """Float32 ``[B, H, T, D]`` of a hidden value of every token."""
        source = self.real(x)

        def make() -> str:
            split = self.reshaped(source, -1, 0, heads, x.width // heads)
            return self.writer.node("Transpose", [split], perm=[0, 2, 1, 3])

        return self.kept(("heads", source), make)

    # Positions relative to each other
    def relative_bias(
        self, table: str, bucket_of: Callable[[NDArray[np.int64]], NDArray[np.int64]], factor: float = 1.0
    ) -> Scores:
        """See GraphBuilder."""
        return relative.bias(self, self.vector(table) * np.float32(factor), bucket_of)

    def relative_scores(
        self, query: Hidden, weight: str, basis: Callable[[NDArray[np.int64]], NDArray[np.float32]], heads: int
    ) -> Scores:
        """See GraphBuilder."""
        return relative.scores(self, query, self.matrix_in_float(weight), basis, heads)

    def segment_scores(self, query: Hidden, table: str, types: Integers, heads: int) -> Scores:
        """See GraphBuilder."""
        return relative.segments(self, query, self.vector(table), types, heads)

    # Reading out
    def token(self, x: Hidden, index: Literal[0, -1]) -> Hidden:
        """See GraphBuilder."""
        if x.layout != "tokens":
            return x
        cube = self.reshaped(self.real(x), -1, 0, x.width)
        name = self.writer.node("Gather", [cube, self.writer.constant(np.int64(index))], axis=1)
        return Hidden("text", x.width, name)

    def squeeze_token(self, x: Hidden) -> Hidden:
        """See GraphBuilder."""
        return x

    def mean_pool(self, x: Hidden, mask: Integers) -> Hidden:
        """See GraphBuilder."""
        node = self.writer.node
        kept = node("Cast", [mask.name], to=1)
        count = node("ReduceSum", [kept, self.writer.integers(1)], keepdims=1)
        shares = node("Div", [kept, node("Max", [count, self.writer.constant(np.float32(1))])])
        cube = self.reshaped(self.real(x), -1, 0, x.width)
        mean = node("MatMul", [self.reshaped(shares, -1, 1, 0), cube])
        return Hidden("text", x.width, self.reshaped(mean, -1, x.width))

    def l2_normalize(self, x: Hidden) -> Hidden:
        """See GraphBuilder."""
        norm = self.writer.node("ReduceL2", [self.real(x), self.writer.integers(1)], keepdims=1)
        least = self.writer.node("Max", [norm, self.writer.constant(np.float32(1e-12))])
        return Hidden(x.layout, x.width, self.writer.node("Div", [self.real(x), least]))
