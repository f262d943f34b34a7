"""What the programs of decoders and encoder-decoders have in common as subgraphs of a .tflite file.

Values are float32 ``[T, W]``, batch 1. Linear layers that read the same values are one product over joined weights,
named ``a[rows]+b[rows]``. Every linear layer with quantised weights is of the form that XNNPACK runs on integers,
rounding each row of what enters to int8 by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ...errors import StudentError, UsageError
from ..decoder_graph import Attention, Norm
from ..graph import ActivationKind
from ..quantized_weights import BlockMatrix, FloatMatrix, QuantizedMatrix, QuantizedTable, QuantizedWeights
from .litert_flatbuffer import FlatbufferFile, Quantization
from .litert_operators import Operators

LOGITS = "logits"

Found = TypeVar("Found")
Made = TypeVar("Made")
Weight = QuantizedMatrix | FloatMatrix | BlockMatrix


@dataclass(eq=False)
class Value:
    """A float32 value ``[T, W]``: a tensor, or columns ``start …`` of ``joint``, cut out when somebody reads it."""

    width: int
    tensor: int | None = None
    joint: int = -1
    start: int = 0


class LiteRtLayers:
    """The operators of :class:`~edgescribe.converters.decoder_graph.DecoderBuilder` that know of no cache.

    Args:
        file: the file that the subgraph joins.
        weights: what the constants are taken from.
        name: the subgraph's and its signature's.
        tokens: T, the tokens of a call.
        resizable: whether the caller may resize inputs for another T.
    """

    def __init__(
        self, file: FlatbufferFile, weights: QuantizedWeights, name: str, tokens: int, resizable: bool = False
    ) -> None:
        self._weights, self._name, self._tokens = weights, name, tokens
        self._by_row = 0 if resizable else None
        self._graph = file.subgraph(name)
        self._ops = Operators(self._graph)
        self._inputs: dict[str, int] = {}
        self._outputs: dict[str, int] = {}
        self._made: dict[Hashable, object] = {}

    # Inputs and outputs
    def _input(self, name: str, shape: tuple[int, ...], dtype: str = "int32") -> int:
        if name not in self._inputs:
            self._inputs[name] = self._graph.tensor(name, shape, dtype)
        return self._inputs[name]

    def output(self, name: str, value: Value) -> None:
        """See DecoderBuilder."""
        self._outputs[name] = self._real(value)

    # Forms of a value
    def _value(self, tensor: int) -> Value:
        return Value(self._ops.shape(tensor)[-1], tensor)

    def _real(self, value: Value) -> int:
        """The value's tensor."""
        if value.tensor is None:
            rows = self._ops.shape(value.joint)[0]
            value.tensor = self._ops.cut(value.joint, (0, value.start), (rows, value.width))
        return value.tensor

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
    def _table(self, name: str) -> int:
        """A table's tensor, in whatever precision it is held."""
        if name in self._weights.blocks:
            return self._constant(name, self._weights.blocks[name])
        table = self._find("table", self._weights.tables, name)
        if isinstance(table, QuantizedTable):
            return self._constant(name, QuantizedMatrix(table.integers, table.scales, None))
        return self._constant(name, FloatMatrix(table, None))

    def embedding(self, ids: int, table: str) -> Value:
        """See DecoderBuilder."""
        return self._value(self._ops.looked_up(self._table(table), ids))

    def _placed(self, table: str, start: int, positions: int, context: int) -> Value:
        """Rows of ``table`` for int32 ``positions`` ``[T]``, all below ``context``, the first one being ``start``."""
        rows = self._table(table)
        available = self._ops.shape(rows)[0]
        if start + context > available:
            raise UsageError(
                f"a context of {context} tokens needs {start + context} rows of {table!r}, which has {available}: "
                "ask for a smaller context"
            )
        if start:
            positions = self._ops.shifted(positions, self._graph.constant("start", np.full(1, start, np.int32)))
        return self._value(self._ops.looked_up(rows, positions))

    def scale(self, x: Value, factor: float) -> Value:
        """See DecoderBuilder."""
        return self._value(self._ops.multiply(self._real(x), self._ops.real("factor", factor)))

    def mark_layer(self, x: Value, layer: int) -> None:
        """See DecoderBuilder: nothing is written."""

    # Linear layers
    def _constant(self, name: str, matrix: Weight) -> int:
        if isinstance(matrix, BlockMatrix):
            return self._graph.blocks(name, matrix.integers, matrix.scales)
        if isinstance(matrix, FloatMatrix):
            return self._ops.real(name, matrix.weight)
        scales = tuple(float(scale) for scale in matrix.scales)
        return self._graph.constant(name, matrix.integers, Quantization(scales, (0,) * len(scales)))

    def _matrix(self, name: str) -> Weight:
        if name in self._weights.blocks:
            return self._weights.blocks[name]
        return self._find("linear layer", self._weights.matrices, name)

    def _joint(self, names: tuple[str, ...]) -> tuple[Weight, str]:
        """Layers as one, and its name."""
        return self._once(("joined", names), lambda: _joined({each: self._matrix(each) for each in names}))

    def _product(self, x: Value, names: tuple[str, ...], site: str, relu: bool = False) -> int:
        matrix, name = self._joint(names)
        weights = self._once(("weights", name), lambda: self._constant(name, matrix))
        bias = -1 if matrix.bias is None else self._ops.real(f"{name}/bias", matrix.bias)
        return self._ops.fully_connected(self._real(x), weights, bias, f"{site}/output", relu=relu)

    def linear(self, x: Value, weight: str, site: str, activation: ActivationKind | None = None) -> Value:
        """See DecoderBuilder."""
        result = self._product(x, (weight,), site, activation == "relu")
        if activation not in (None, "relu"):
            result = self._activated(result, activation)
        return self._value(result)

    def linears(self, x: Value, weights: tuple[str, ...], site: str) -> tuple[Value, ...]:
        """See DecoderBuilder."""
        kinds = {type(self._matrix(name)) for name in weights}
        # XNNPACK cuts only what cannot be resized, and on many rows a product for each takes no longer.
        if len(kinds) > 1 or self._by_row is not None:
            return tuple(self.linear(x, name, site) for name in weights)
        rows = tuple(_rows(self._matrix(name)) for name in weights)
        return self._parts(self._product(x, weights, site), rows)

    def joined_linear(self, x: Value, weight: str, widths: tuple[int, ...], site: str) -> tuple[Value, ...]:
        """See DecoderBuilder."""
        return self._parts(self._product(x, (weight,), site), widths)

    @staticmethod
    def _parts(joint: int, widths: tuple[int, ...]) -> tuple[Value, ...]:
        starts = np.cumsum((0, *widths))
        return tuple(Value(width, None, joint, int(start)) for width, start in zip(widths, starts, strict=False))

    def logits(self, x: Value, weight: str) -> Value:
        """See DecoderBuilder."""
        if weight in self._weights.matrices:
            return self.linear(x, weight, LOGITS)
        table = self._table(weight)
        return self._value(self._ops.fully_connected(self._real(x), table, -1, f"{LOGITS}/output"))

    # Norms and element-wise
    def norm(self, x: Value, norm: Norm) -> Value:
        """See DecoderBuilder."""
        return self._value(self._normal(self._real(x), norm))

    def _normal(self, x: int, norm: Norm) -> int:
        """``x`` of any shape normalised over its last axis."""
        ops = self._ops
        gain = self._vector(f"{norm.name}.weight")
        if norm.kind == "layer":
            x = ops.subtract(x, ops.mean(x))
        mean = ops.mean(ops.multiply(x, x))
        spread = ops.unary("RSQRT", ops.add(mean, ops.real("eps", norm.eps)))
        scaled = ops.real(f"{norm.name}.weight", gain + np.float32(norm.offset))
        result = ops.multiply(ops.multiply(x, spread), scaled)
        if norm.kind == "layer":
            result = ops.add(result, ops.real(f"{norm.name}.bias", self._vector(f"{norm.name}.bias")))
        return result

    def add_norm(self, x: Value, update: Value, norm: Norm) -> tuple[Value, Value]:
        """See DecoderBuilder."""
        total = self.add(x, update)
        return total, self.norm(total, norm)

    def head_norm(self, x: Value, norm: Norm, heads: int) -> Value:
        """See DecoderBuilder."""
        source = self._real(x)
        rows, width = self._ops.shape(source)
        by_head = self._ops.reshape(source, (rows, heads, width // heads), self._by_row)
        return self._value(self._ops.reshape(self._normal(by_head, norm), (rows, width), self._by_row))

    def gate(self, gate: Value, up: Value, kind: ActivationKind) -> Value:
        """See DecoderBuilder."""
        return self._value(self._ops.multiply(self._activated(self._real(gate), kind), self._real(up)))

    def _activated(self, x: int, kind: ActivationKind | None) -> int:
        if kind in ("gelu", "gelu_tanh"):
            return self._ops.gelu(x, approximate=kind == "gelu_tanh")
        if kind == "silu":
            return self._ops.multiply(x, self._ops.unary("LOGISTIC", x))
        return self._ops.unary(str(kind).upper(), x)

    def add(self, a: Value, b: Value) -> Value:
        """See DecoderBuilder."""
        return self._value(self._ops.add(self._real(a), self._real(b)))

    # Attention
    def _queries(self, query: int, attention: Attention) -> int:
        """``[T, H, D]`` times the scale, as ``[1, K, H / K * T, D]``: heads that share keys are rows of one product."""
        heads, kv_heads, width = attention.heads, attention.kv_heads, attention.head_width
        if attention.scale != 1:
            query = self._ops.multiply(query, self._ops.real("scale", attention.scale))
        by_head = self._heads_first(query, heads)
        return self._ops.reshape(by_head, (1, kv_heads, heads // kv_heads * self._tokens, width), self._below(2))

    def _attend(self, queries: int, keys: int, values: int, penalty: int) -> int:
        """Attention of :meth:`_queries` to keys ``[1, K, room, D]`` and values ``[1, K, D, room]``: ``[1, H, T, D]``.

        ``penalty`` ``[1, 1 or H, T or 1, room]`` is added to the scores; with one for each head K is H.
        """
        ops, tokens = self._ops, self._tokens
        _, kv_heads, rows, width = ops.shape(queries)
        room, heads = ops.shape(keys)[2], kv_heads * rows // tokens
        scores = ops.product(queries, keys, True)
        by_token = ops.reshape(scores, (1, heads, tokens, room), 3) if tokens > 1 else scores
        shares = ops.reshape(ops.softmax(ops.add(by_token, penalty)), (1, kv_heads, rows, room), 3)
        return ops.reshape(ops.product(shares, values, True), (1, heads, tokens, width), self._below(2))

    def _side_by_side(self, context: int) -> Value:
        """``[1, H, T, D]`` as a value of ``H*D``."""
        _, heads, tokens, width = self._ops.shape(context)
        if tokens > 1:
            context = self._ops.transpose(context, (0, 2, 1, 3))
        return self._value(self._ops.reshape(context, (tokens, heads * width), self._by_row))

    def _by_head(self, x: Value, heads: int) -> int:
        """``[T, H*D]`` as ``[T, H, D]``."""
        return self._ops.reshape(self._real(x), (self._tokens, heads, x.width // heads), self._by_row)

    def _heads_first(self, x: int, heads: int) -> int:
        """``[T, H, D]`` as ``[1, H, T, D]``."""
        tokens, _, width = self._ops.shape(x)
        turned = x if tokens == 1 else self._ops.transpose(x, (1, 0, 2))
        return self._ops.reshape(turned, (1, heads, tokens, width), self._below(2))

    def _tokens_last(self, x: Value, heads: int) -> int:
        """``[T, H*D]`` as ``[1, H, D, T]``."""
        turned = self._ops.transpose(self._real(x), (1, 0))
        return self._ops.reshape(turned, (1, heads, x.width // heads, self._tokens), self._below(3))

    def _below(self, axis: int) -> int | None:
        """The axis of tokens, where the engine is to work its size out."""
        return None if self._by_row is None else axis

def _rows(matrix: Weight) -> int:
    return len(matrix.weight if isinstance(matrix, FloatMatrix) else matrix.integers)


def _joined(matrices: Mapping[str, Weight]) -> tuple[Weight, str]:
    """Matrices of one kind and input width as one, and its name; a single one stays as it is."""
    held = list(matrices.values())
    if len(held) == 1:
        return held[0], next(iter(matrices))
    name = "+".join(f"{name}[{_rows(matrix)}]" for name, matrix in matrices.items())
    bias = None
    if any(matrix.bias is not None for matrix in held):
        bias = np.concatenate([np.zeros(_rows(m), np.float32) if m.bias is None else m.bias for m in held])
    floats = [matrix.weight for matrix in held if isinstance(matrix, FloatMatrix)]
    if floats:
        return FloatMatrix(np.concatenate(floats), bias), name
    integers = np.concatenate([m.integers for m in held if not isinstance(m, FloatMatrix)])
    scales = np.concatenate([m.scales for m in held if not isinstance(m, FloatMatrix)])
    kind = BlockMatrix if isinstance(held[0], BlockMatrix) else QuantizedMatrix
    return kind(integers, scales, bias), name
