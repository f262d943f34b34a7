"""A decoder family's program written as one subgraph of a .tflite file: so many tokens at once over a KV cache.

What it takes beside the tokens is made so that the engine has nothing to work out: each token's ``positions``, which
rows of the rotary constants are looked up by, and a ``mask`` that is added to the scores. The caches of a layer are
inputs and outputs of the same names; the caller binds both to the same memory, where they are updated in place.

- Keys are cached as ``[1, K, C, D]``, values transposed, ``[1, K, D, C]``, so that both are the right operand of a
  product with a transposed one, which XNNPACK runs fastest (by 3 to 5 % of a step of SmolLM2-135M, 512 tokens).
- Query heads that share a key/value head are rows of one product.
- Linear layers that read the same values are one product over joined weights, named ``a[rows]+b[rows]``; rotary
  positions are applied to queries and keys in one go where they lie side by side in it.

Every linear layer with quantised weights is of the form that XNNPACK runs on integers, rounding each row of what
enters to int8 by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ...errors import StudentError, UsageError
from ..decoder_graph import Attention, Norm, Rotary
from ..graph import ActivationKind
from ..quantized_weights import BlockMatrix, FloatMatrix, QuantizedMatrix, QuantizedTable, QuantizedWeights
from .litert_flatbuffer import FlatbufferFile, Quantization
from .litert_operators import Operators

TOKENS, POSITIONS, MASK, LAST, LOGITS = "tokens", "positions", "mask", "last", "logits"
"""Names of inputs and of the output; caches are ``key_<layer>`` and ``value_<layer>``."""

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


@dataclass(eq=False)
class _Cache:
    """A layer's caches as they enter and as they leave."""

    entering: dict[str, int] = field(default_factory=dict)
    leaving: dict[str, int] = field(default_factory=dict)


class LiteRtDecoderGraph:
    """Writes one forward pass for batch 1; implements :class:`~edgescribe.converters.decoder_graph.DecoderBuilder`.

    Args:
        file: the file that the subgraph joins.
        weights: what the constants are taken from.
        tokens: T, the tokens of a call.
        context: the most tokens that the caches can be resized for.
        room: C, the tokens that they hold as written.
        last_only: whether logits are given for one token alone, whose index is the input ``last``.
    """

    def __init__(
        self, file: FlatbufferFile, weights: QuantizedWeights, tokens: int, context: int, room: int, last_only: bool
    ) -> None:
        self._tokens, self._context, self._room, self._last_only = tokens, context, room, last_only
        self._weights = weights
        self._name = f"decode_{tokens}_of_{context}"
        self._graph = file.subgraph(self._name)
        self._ops = Operators(self._graph)
        self._inputs: dict[str, int] = {}
        self._outputs: dict[str, int] = {}
        self._made: dict[Hashable, object] = {}
        self._caches: dict[int, _Cache] = {}

    def finish(self) -> None:
        """Close the graph as the signature ``decode_<T>_of_<context>``."""
        inputs, outputs = dict(self._inputs), dict(self._outputs)
        for layer, cache in sorted(self._caches.items()):
            for part, tensor in cache.entering.items():
                inputs[f"{part}_{layer}"] = tensor
                outputs[f"{part}_{layer}"] = cache.leaving[part]
        self._graph.finish(self._name, inputs, outputs)

    # Inputs and outputs
    def _input(self, name: str, shape: tuple[int, ...], dtype: str = "int32") -> int:
        if name not in self._inputs:
            self._inputs[name] = self._graph.tensor(name, shape, dtype)
        return self._inputs[name]

    def token_ids(self) -> int:
        """See DecoderBuilder."""
        return self._input(TOKENS, (self._tokens,))

    def _positions(self) -> int:
        return self._input(POSITIONS, (self._tokens,))

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

    def position_embedding(self, table: str, start: int = 0) -> Value:
        """See DecoderBuilder."""
        rows = self._table(table)
        available = self._ops.shape(rows)[0]
        if start + self._context > available:
            raise UsageError(
                f"a context of {self._context} tokens needs {start + self._context} rows of {table!r}, which has "
                f"{available}: ask for a smaller context"
            )
        indices = self._positions()
        if start:
            offset = self._graph.constant("start", np.full(1, start, np.int32))
            indices = self._ops.shifted(indices, offset)
        return self._value(self._ops.looked_up(rows, indices))

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

    def _product(self, x: Value, names: tuple[str, ...], site: str, relu: bool = False) -> int:
        matrix, name = self._once(("joined", names), lambda: _joined({each: self._matrix(each) for each in names}))
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
        if len(kinds) > 1:
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
        by_head = self._ops.reshape(source, (rows, heads, width // heads))
        return self._value(self._ops.reshape(self._normal(by_head, norm), (rows, width)))

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
    def attention(self, query: Value, key: Value, value: Value, layer: int, attention: Attention) -> Value:
        """See DecoderBuilder."""
        ops, tokens, room = self._ops, self._tokens, self._room
        heads, kv_heads, width = attention.heads, attention.kv_heads, attention.head_width
        rows = heads // kv_heads * tokens
        q, k = self._turned(query, key, attention)
        q = ops.multiply(q, ops.real("scale", attention.scale))
        q = ops.reshape(self._heads_first(q, heads), (1, kv_heads, rows, width))
        k = self._heads_first(k, kv_heads)
        v = ops.reshape(ops.transpose(self._real(value), (1, 0)), (1, kv_heads, width, tokens))
        keys = self._cached("key", layer, k, (1, kv_heads, room, width))
        values = self._cached("value", layer, v, (1, kv_heads, width, room))
        scores = ops.product(q, keys, True)
        mask = self._input(MASK, (1, 1, tokens, room), "float32")
        by_token = ops.reshape(scores, (1, heads, tokens, room), 3) if tokens > 1 else scores
        shares = ops.reshape(ops.softmax(ops.add(by_token, mask)), (1, kv_heads, rows, room), 3)
        context = ops.reshape(ops.product(shares, values, True), (1, heads, tokens, width))
        if tokens > 1:
            context = ops.transpose(context, (0, 2, 1, 3))
        return self._value(ops.reshape(context, (tokens, heads * width)))

    def _heads_first(self, x: int, heads: int) -> int:
        """``[T, H, D]`` as ``[1, H, T, D]``."""
        tokens, _, width = self._ops.shape(x)
        turned = x if tokens == 1 else self._ops.transpose(x, (1, 0, 2))
        return self._ops.reshape(turned, (1, heads, tokens, width))

    def _turned(self, query: Value, key: Value, attention: Attention) -> tuple[int, int]:
        """Queries ``[T, H, D]`` and keys ``[T, K, D]``, rotated by their positions."""
        heads, kv_heads, width = attention.heads, attention.kv_heads, attention.head_width
        tokens, ops = self._tokens, self._ops
        adjacent = query.joint >= 0 and query.joint == key.joint and key.start == query.start + query.width
        if attention.rotary is None or not adjacent:
            q = ops.reshape(self._real(query), (tokens, heads, width))
            k = ops.reshape(self._real(key), (tokens, kv_heads, width))
            if attention.rotary is None:
                return q, k
            return self._rotated(q, attention.rotary), self._rotated(k, attention.rotary)
        both = Value(query.width + key.width, None, query.joint, query.start)
        turned = ops.reshape(self._real(both), (tokens, heads + kv_heads, width))
        turned = self._rotated(turned, attention.rotary)
        q = ops.cut(turned, (0, 0, 0), (tokens, heads, width))
        return q, ops.cut(turned, (0, heads, 0), (tokens, kv_heads, width))

    def _rotated(self, x: int, rotary: Rotary) -> int:
        ops = self._ops
        tokens, heads, width = ops.shape(x)
        cosine, sine = self._once(("rotation", rotary), lambda: self._rotation(rotary))
        first, second = (ops.cut(x, (0, 0, start), (tokens, heads, width // 2)) for start in (0, width // 2))
        swapped = ops.joined([second, first], 2)
        return ops.add(ops.multiply(x, cosine), ops.multiply(swapped, sine))

    def _rotation(self, rotary: Rotary) -> tuple[int, int]:
        """Cosines and signed sines of this call's positions: ``[T, 1, D]`` each."""
        angles = np.arange(self._context, dtype=np.float32)[:, None] * np.asarray(rotary.frequencies, np.float32)[None]
        cosine, sine = (np.float32(rotary.factor) * part(angles) for part in (np.cos, np.sin))
        tables = np.concatenate([cosine, cosine], 1), np.concatenate([-sine, sine], 1)
        shape = (self._tokens, 1, tables[0].shape[1])
        found = [
            self._ops.reshape(self._ops.rows(self._ops.real(name, table), self._positions()), shape)
            for name, table in zip(("cosines", "sines"), tables, strict=True)
        ]
        return found[0], found[1]

    def _cached(self, part: str, layer: int, new: int, shape: tuple[int, ...]) -> int:
        """The layer's cache with what this call adds to it."""
        cache = self._caches.setdefault(layer, _Cache())
        entering = self._graph.tensor(f"{part}_{layer}", shape, "float32")
        leaving = self._ops.updated(entering, new, self._start(part))
        cache.entering[part], cache.leaving[part] = entering, leaving
        return leaving

    def _start(self, part: str) -> int:
        """Where this call's keys or values begin in their cache, one number for each axis."""
        name = f"{part}_start"
        return self._input(name, (4,))

    # Reading out
    def wanted_tokens(self, x: Value) -> Value:
        """See DecoderBuilder."""
        if not self._last_only:
            return x
        return self._value(self._ops.rows(self._real(x), self._input(LAST, (1,))))


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
