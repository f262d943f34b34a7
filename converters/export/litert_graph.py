"""A family's program written as one subgraph of a .tflite file, operator by operator, for a fixed number of tokens.

Everything but the look-ups of embeddings and mask is of a form that the engine hands over to XNNPACK in one piece,
every linear layer to its int8 kernels:

- static: ``QUANTIZE`` on the grid of what enters a site, ``FULLY_CONNECTED`` int8, ``DEQUANTIZE``; the second falls
  away where a value is read on the grid that it was computed on, the first where two sites share a grid;
- dynamic: ``FULLY_CONNECTED`` with float activations and int8 weights;
- tables: rows and scales are gathered and multiplied, so that no table is ever unfolded.

Tensors are named after what they hold (:mod:`edgescribe.converters.export.litert` reads them back): weights after
their matrix, tables after their table with ``<table>/scales``, and ``<site>/input``, ``<site>/output``.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from ...errors import StudentError, UsageError
from ..graph import ActivationKind
from ..quantized_weights import FloatMatrix, Grid, QuantizedMatrix, QuantizedTable, QuantizedWeights, bias_integers
from .litert_flatbuffer import FlatbufferFile, Quantization
from .litert_operators import Operators

PADDED = -1e4
"""Added to the scores of padding: far below any score, so that its exponential is exactly 0 in float32."""

UNIT = Quantization((1.0,), (0,))
"""The grid of int8 rows whose scales are multiplied in afterwards."""

Found = TypeVar("Found")
Made = TypeVar("Made")


@dataclass(eq=False)
class Value:
    """A value of the graph in the forms that its readers asked for, each computed once.

    Attributes:
        shape: batch 1 first.
        real: its float32 (or, of an input, int32) tensor, None as long as nobody reads it.
        integers: its int8 tensors by grid.
        exact: grid of the int8 tensor that it was computed as: dequantised, that is the value.
    """

    shape: tuple[int, ...]
    real: int | None = None
    integers: dict[Grid, int] = field(default_factory=dict)
    exact: Grid | None = None


class LiteRtGraph:
    """Writes one forward pass for batch 1; implements :class:`~edgescribe.converters.graph.GraphBuilder`.

    Args:
        file: the file that the subgraph joins.
        weights: what the constants are taken from.
        tokens: T.
        longest: the largest T of the file's graphs. Constants that grow with T are stored once, for it.
    """

    whole_layers = False

    def __init__(
        self, file: FlatbufferFile, weights: QuantizedWeights, tokens: int, longest: int | None = None
    ) -> None:
        self.tokens = tokens
        self._longest = tokens if longest is None else longest
        self._weights = weights
        self._name = f"tokens_{tokens}"
        self._graph = file.subgraph(self._name)
        self._ops = Operators(self._graph)
        self._inputs: dict[str, Value] = {}
        self._outputs: dict[str, int] = {}
        self._made: dict[Hashable, object] = {}

    def finish(self) -> None:
        """Close the graph as the signature ``tokens_<T>``."""
        inputs = {name: self._real(value) for name, value in self._inputs.items()}
        self._graph.finish(self._name, inputs, self._outputs)

    # Inputs and outputs
    def _input(self, name: str) -> Value:
        if name not in self._inputs:
            shape = (1, self.tokens)
            self._inputs[name] = Value(shape, self._graph.tensor(name, shape, "int32"))
        return self._inputs[name]

    def token_ids(self) -> Value:
        """See GraphBuilder."""
        return self._input("input_ids")

    def token_mask(self) -> Value:
        """See GraphBuilder."""
        return self._input("attention_mask")

    def token_types(self) -> Value:
        """See GraphBuilder."""
        return self._input("token_type_ids")

    def output(self, name: str, value: Value) -> None:
        """See GraphBuilder."""
        self._outputs[name] = self._real(value)

    # Forms of a value
    def _value(self, tensor: int) -> Value:
        return Value(self._ops.shape(tensor), tensor)

    def _real(self, value: Value) -> int:
        """The value's float32 tensor."""
        if value.real is None:
            if value.exact is None:
                raise ValueError("a value has neither a float form nor the grid that it was computed on")
            value.real = self._ops.dequantize(value.integers[value.exact])
        return value.real

    def _on_grid(self, value: Value, grid: Grid, name: str) -> int:
        """The value's int8 tensor on ``grid``."""
        if grid not in value.integers:
            value.integers[grid] = self._ops.quantize(self._real(value), _quantization(grid), name)
        return value.integers[grid]

    def _once(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """What several operators of the graph share."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]  # type: ignore[return-value]

    def _find(self, kind: str, held: Mapping[str, Found], name: str) -> Found:
        if name not in held:
            raise StudentError(f"the student has no {kind} {name!r}, which its family's program reads: read it anew")
        return held[name]

    def _vector(self, name: str) -> NDArray[np.float32]:
        return self._find("parameter", self._weights.vectors, name)

    # Embeddings
    def embedding(self, ids: Value, table: str) -> Value:
        """See GraphBuilder."""
        indices = self._real(ids)
        rows, scales = self._table(table)
        if scales is None:
            return self._value(self._ops.rows(rows, indices))
        return self._value(self._scaled_rows(self._ops.rows(rows, indices), self._ops.rows(scales, indices)))

    def position_embedding(self, table: str, start: int = 0) -> Value:
        """See GraphBuilder."""
        return self._value(self._slice_of_table(table, start, self.tokens))

    def table_row(self, table: str, row: int) -> Value:
        """See GraphBuilder."""
        return self._value(self._slice_of_table(table, row, 1))

    def _table(self, name: str) -> tuple[int, int | None]:
        """Tensors of a table's rows and, where they are int8, of its scales ``[V, 1]``."""
        table = self._find("table", self._weights.tables, name)
        if isinstance(table, QuantizedTable):
            rows = self._graph.constant(name, table.integers, UNIT)
            return rows, self._ops.real(f"{name}/scales", table.scales[:, None])
        return self._ops.real(name, table), None

    def _slice_of_table(self, name: str, start: int, count: int) -> int:
        """Rows of a table one after the other: ``[1, count, W]``."""
        rows, scales = self._table(name)
        available, width = self._ops.shape(rows)
        if start + count > available:
            raise UsageError(
                f"a bucket of {self.tokens} tokens needs {start + count} rows of {name!r}, which has {available}: "
                "ask for smaller buckets"
            )
        part = self._ops.cut(rows, (start, 0), (count, width))
        if scales is not None:
            part = self._scaled_rows(part, self._ops.cut(scales, (start, 0), (count, 1)))
        return self._ops.reshape(part, (1, count, width))

    def _scaled_rows(self, rows: int, scales: int) -> int:
        return self._ops.multiply(self._ops.dequantize(rows), scales)

    def mark_layer(self, x: Value, layer: int) -> None:
        """See GraphBuilder: nothing is written."""

    # Layers
    def linear(self, x: Value, weight: str, site: str, activation: ActivationKind | None = None) -> Value:
        """See GraphBuilder."""
        matrix = self._find("linear layer", self._weights.matrices, weight)
        relu = activation == "relu"
        if isinstance(matrix, FloatMatrix):
            weights = self._ops.real(weight, matrix.weight)
            result = self._float_product(x, weights, matrix, weight, site, relu)
        else:
            scales = tuple(float(scale) for scale in matrix.scales)
            weights = self._graph.constant(weight, matrix.integers, Quantization(scales, (0,) * len(scales)))
            if self._weights.precision == "w8a8-static":
                result = self._static_product(x, weights, matrix, weight, site, relu)
            else:
                result = self._float_product(x, weights, matrix, weight, site, relu)
        return result if activation is None or relu else self.activation(result, activation)

    def _float_product(
        self, x: Value, weights: int, matrix: QuantizedMatrix | FloatMatrix, name: str, site: str, relu: bool
    ) -> Value:
        rows = self._ops.shape(weights)[0]
        bias = self._ops.real(f"{name}/bias", np.zeros(rows) if matrix.bias is None else matrix.bias)
        return self._value(self._ops.fully_connected(self._real(x), weights, bias, f"{site}/output", relu=relu))

    def _static_product(
        self, x: Value, weights: int, matrix: QuantizedMatrix, name: str, site: str, relu: bool
    ) -> Value:
        grids = self._find("activation grids of", self._weights.sites, site)
        scales = matrix.scales * np.float32(grids.input.scale)
        on_accumulator = Quantization(tuple(float(scale) for scale in scales), (0,) * len(scales))
        bias = self._graph.constant(f"{name}/bias", bias_integers(matrix, grids.input), on_accumulator)
        source = self._on_grid(x, grids.input, f"{site}/input")
        grid = _quantization(grids.output)
        result = self._ops.fully_connected(source, weights, bias, f"{site}/output", grid, relu)
        return Value(self._ops.shape(result), None, {grids.output: result}, grids.output)

    def linears(self, x: Value, weights: tuple[str, ...], site: str) -> tuple[Value, ...]:
        """See GraphBuilder.

        One product each: measured, they take as long as one large product that is split afterwards.
        """
        return tuple(self.linear(x, weight, site) for weight in weights)

    def layer_norm(self, x: Value, norm: str, eps: float, residual: Value | None = None) -> Value:
        """See GraphBuilder."""
        ops, whole = self._ops, self._real(x)
        if residual is not None:
            whole = ops.add(whole, self._real(residual))
        centred = ops.subtract(whole, ops.mean(whole))
        variance = ops.mean(ops.multiply(centred, centred))
        deviation = ops.unary("RSQRT", ops.add(variance, ops.real("eps", eps)))
        gain = ops.real(f"{norm}.weight", self._vector(f"{norm}.weight"))
        bias = ops.real(f"{norm}.bias", self._vector(f"{norm}.bias"))
        return self._value(ops.add(ops.multiply(ops.multiply(centred, deviation), gain), bias))

    def activation(self, x: Value, kind: ActivationKind) -> Value:
        """See GraphBuilder.

        GELU stays in float between two int8 products: XNNPACK's is faster than the engine's look-up table for int8.
        """
        source = self._real(x)
        if kind in ("gelu", "gelu_tanh"):
            return self._value(self._ops.gelu(source, approximate=kind == "gelu_tanh"))
        if kind == "silu":
            return self._value(self._ops.multiply(source, self._ops.unary("LOGISTIC", source)))
        return self._value(self._ops.unary(kind.upper(), source))

    def add(self, a: Value, b: Value) -> Value:
        """See GraphBuilder."""
        return self._value(self._ops.add(self._real(a), self._real(b)))

    def add_vector(self, x: Value, vector: str) -> Value:
        """See GraphBuilder."""
        constant = self._ops.real(vector, self._vector(vector).reshape(-1))
        return self._value(self._ops.add(self._real(x), constant))

    # Attention
    def attention(
        self,
        query: Value,
        key: Value,
        value: Value,
        mask: Value,
        heads: int,
        bias: Value | None = None,
        scale: float | None = None,
    ) -> Value:
        """See GraphBuilder."""
        ops = self._ops
        width = query.shape[-1] // heads
        factor = width**-0.5 if scale is None else scale
        scaled = ops.multiply(self._by_head(query, heads), ops.real("scale", factor))
        scores = ops.product(scaled, self._by_head(key, heads), transposed=True)
        weights = ops.softmax(ops.add(scores, self._penalty(mask, bias, factor)))
        context = ops.transpose(ops.product(weights, self._by_head(value, heads)), (0, 2, 1, 3))
        return self._value(ops.reshape(context, query.shape))

    def _by_head(self, x: Value, heads: int) -> int:
        """``[1, T, H*D]`` as float32 ``[1, H, T, D]``; moved as int8 where it is held so."""

        def make() -> int:
            source = self._real(x) if x.exact is None else x.integers[x.exact]
            batch, tokens, width = x.shape
            parts = self._ops.reshape(source, (batch, tokens, heads, width // heads))
            turned = self._ops.transpose(parts, (0, 2, 1, 3))
            return turned if x.exact is None else self._ops.dequantize(turned)

        return self._once(("by head", x, heads), make)

    def _penalty(self, mask: Value, bias: Value | None, factor: float) -> int:
        """What is added to scaled scores: ``bias * factor``, and ``PADDED`` for padding."""

        def make() -> int:
            # One look-up serves: the engine has no int32 arithmetic that XNNPACK would take.
            by_token = self._ops.rows(self._ops.real("padding", np.array([PADDED, 0.0])), self._real(mask))
            return self._ops.reshape(by_token, (1, 1, 1, self.tokens))

        padding = self._once(("padding", mask), make)
        if bias is None:
            return padding

        def make_with_bias() -> int:
            return self._ops.add(self._ops.multiply(self._real(bias), self._ops.real("scale", factor)), padding)

        return self._once(("padding", mask, bias, factor), make_with_bias)

    # Positions relative to each other
    def relative_bias(
        self, table: str, bucket_of: Callable[[NDArray[np.int64]], NDArray[np.int64]], factor: float = 1.0
    ) -> Value:
        """See GraphBuilder."""
        span = np.arange(-(self.tokens - 1), self.tokens)
        by_offset = np.float32(factor) * self._vector(table)[bucket_of(span)].T[None, :, None]
        rows = self._ops.real("rows", np.zeros((1, 1, self.tokens, 1)))
        return self._value(self._skewed(self._ops.add(self._ops.real(f"{table}/{self.tokens}", by_offset), rows)))

    def relative_scores(
        self, query: Value, weight: str, basis: Callable[[NDArray[np.int64]], NDArray[np.float32]], heads: int
    ) -> Value:
        """See GraphBuilder."""
        matrix = self._find("linear layer", self._weights.matrices, weight)
        unfolded = matrix.weight if isinstance(matrix, FloatMatrix) else matrix.dequantized()
        # Offsets fall from left to right, since the score of i and j is that of i - j.
        span = np.arange(self._longest - 1, -self._longest, -1)
        keys = (basis(span).astype(np.float32) @ unfolded.T).reshape(len(span), heads, -1).transpose(1, 0, 2)[None]
        shape = (1, heads, 2 * self.tokens - 1, keys.shape[-1])
        own = self._ops.cut(self._ops.real(weight, keys), (0, 0, self._longest - self.tokens, 0), shape)
        return self._value(self._skewed(self._ops.product(self._by_head(query, heads), own, transposed=True)))

    def _skewed(self, scores: int) -> int:
        """``[1, H, T, T]`` whose ``i, j`` is ``i, j - i + T - 1`` of ``scores`` ``[1, H, T, 2T - 1]``.

        Read as one row, each line begins one place earlier than rows of ``2T - 2`` would have it
        (Huang et al., "Music Transformer", 2018).
        """
        _, heads, tokens, columns = self._ops.shape(scores)
        if tokens == 1:
            return scores
        flat = self._ops.reshape(scores, (1, heads, tokens * columns))
        kept = self._ops.cut(flat, (0, 0, tokens - 1), (1, heads, tokens * (columns - 1)))
        lines = self._ops.reshape(kept, (1, heads, tokens, columns - 1))
        return self._ops.cut(lines, (0, 0, 0, 0), (1, heads, tokens, tokens))

    def segment_scores(self, query: Value, table: str, types: Value, heads: int) -> Value:
        """See GraphBuilder."""
        ops = self._ops
        rows = self._vector(table).reshape(2, heads, -1).transpose(1, 0, 2)[None]
        both = ops.product(self._by_head(query, heads), ops.real(table, rows), transposed=True)
        shape = (1, heads, self.tokens, 1)
        same, other = ops.cut(both, (0, 0, 0, 0), shape), ops.cut(both, (0, 0, 0, 1), shape)
        return self._value(ops.add(same, ops.multiply(ops.subtract(other, same), self._differ(types))))

    def _differ(self, types: Value) -> int:
        """``[1, 1, T, T]``: 1 where the types of two tokens differ, else 0."""

        def make() -> int:
            ops, numbers = self._ops, self._ops.widen(self._real(types))
            down, across = (1, 1, self.tokens, 1), (1, 1, 1, self.tokens)
            gap = ops.subtract(ops.reshape(numbers, down), ops.reshape(numbers, across))
            return ops.minimum(ops.multiply(gap, gap), ops.real("one", 1.0))

        return self._once(("differ", types), make)

    # Reading out
    def token(self, x: Value, index: Literal[0, -1]) -> Value:
        """See GraphBuilder."""
        batch, tokens, width = x.shape
        return self._value(self._ops.cut(self._real(x), (0, 0 if index == 0 else tokens - 1, 0), (batch, 1, width)))

    def squeeze_token(self, x: Value) -> Value:
        """See GraphBuilder."""
        return self._value(self._ops.reshape(self._real(x), (x.shape[0], x.shape[2])))

    def mean_pool(self, x: Value, mask: Value) -> Value:
        """See GraphBuilder."""
        ops = self._ops
        kept = ops.rows(ops.real("kept", np.array([0.0, 1.0])), self._real(mask))
        share = ops.divide(kept, ops.sum(kept))
        pooled = ops.product(ops.reshape(share, (1, 1, self.tokens)), self._real(x))
        return self._value(ops.reshape(pooled, (1, x.shape[-1])))

    def l2_normalize(self, x: Value) -> Value:
        """See GraphBuilder."""
        ops, source = self._ops, self._real(x)
        squares = ops.maximum(ops.sum(ops.multiply(source, source)), ops.real("least", 1e-24))
        return self._value(ops.multiply(source, ops.unary("RSQRT", squares)))


def _quantization(grid: Grid) -> Quantization:
    return Quantization((float(grid.scale),), (grid.zero_point,))
