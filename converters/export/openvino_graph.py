"""A family's program written as an OpenVINO model, operator by operator.

The model takes ``input_ids``, ``attention_mask`` (and ``token_type_ids`` where the program asks for it) as int32
``[batch, tokens]``, both free. Rows of tables are gathered as int8 and widened after, so that no table is ever
unfolded; linear layers are :mod:`~edgescribe.converters.export.openvino_products`'s. Tables are constants named
``table:<name>`` with ``table scales:<name>``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import openvino as ov
import openvino.opset13 as ops
from numpy.typing import NDArray

from ...errors import StudentError
from ..graph import ActivationKind
from ..quantized_weights import QuantizedMatrix, QuantizedTable, QuantizedWeights
from .openvino_nodes import NamedConstants, Node, integers, join_heads, number, split_heads, width_of
from .openvino_products import Products

MASKED = -1e4
"""What is added to the scores of padding: their softmax is nought, no row becomes NaN, and float16 can hold it."""


class OpenVinoGraph:
    """Builds an :class:`openvino.Model`; implements :class:`~edgescribe.converters.graph.GraphBuilder`.

    Args:
        weights: what the constants are taken from.
        max_tokens: longest input served: how far relative positions reach.
    """

    whole_layers = False

    def __init__(self, weights: QuantizedWeights, max_tokens: int) -> None:
        self._weights = weights
        self._max_tokens = max_tokens
        self._constants = NamedConstants()
        self._products = Products(weights, self._constants)
        self._inputs: dict[str, Node] = {}
        self._outputs: list[Node] = []
        # By id of the mask, which is kept so that its id stays its own.
        self._masks: dict[int, tuple[Node, Node]] = {}
        self._token_count: Node | None = None

    def model(self, name: str) -> ov.Model:
        """The model built so far, its nodes named in order, so that the same program gives the same file."""
        order = [key for key in ("input_ids", "attention_mask", "token_type_ids") if key in self._inputs]
        model = ov.Model(self._outputs, [self._inputs[key] for key in order], name)
        for index, node in enumerate(model.get_ordered_ops()):
            kind = node.get_type_name()
            if kind not in ("Parameter", "Result") and ":" not in node.get_friendly_name():
                node.set_friendly_name(f"{kind}/{index}")
        return model

    # Inputs and outputs

    def token_ids(self) -> Node:
        """Input ``input_ids``."""
        return self._input("input_ids")

    def token_mask(self) -> Node:
        """Input ``attention_mask``."""
        return self._input("attention_mask")

    def token_types(self) -> Node:
        """Input ``token_type_ids``."""
        return self._input("token_type_ids")

    def output(self, name: str, value: Node) -> None:
        """Declare a float32 output."""
        result = ops.result(value, name=f"{name}/result")
        result.output(0).get_tensor().set_names({name})
        self._outputs.append(result)

    def _input(self, name: str) -> Node:
        if name not in self._inputs:
            node = ops.parameter(ov.PartialShape([-1, -1]), ov.Type.i32, name=name)
            node.output(0).get_tensor().set_names({name})
            self._inputs[name] = node
        return self._inputs[name]

    # Parameters

    def _vector(self, name: str) -> Node:
        return self._constants.get(f"vector:{name}", lambda: self._find_vector(name).reshape(-1))

    def _find_vector(self, name: str) -> NDArray[np.float32]:
        vector = self._weights.vectors.get(name)
        if vector is None:
            raise StudentError(f"the student has no parameter {name!r}, which its family's program reads")
        return np.asarray(vector, np.float32)

    def _rows(self, table: str, pick: Callable[[Node], Node]) -> Node:
        """Rows of ``table``, picked as int8 and widened after; ``pick`` maps ``[rows, n]`` to ``[…, n]``."""
        found = self._weights.tables.get(table, self._weights.vectors.get(table))
        if found is None:
            raise StudentError(f"the student has no table {table!r}, which its family's program reads")
        if not isinstance(found, QuantizedTable):
            return pick(self._constants.get(f"table:{table}", np.asarray(found, np.float32)))
        codes = pick(self._constants.get(f"table:{table}", found.integers))
        scales = pick(self._constants.get(f"table scales:{table}", found.scales.astype(np.float32).reshape(-1, 1)))
        return ops.multiply(ops.convert(codes, "f32"), scales)

    def _small_table(self, name: str) -> NDArray[np.float32]:
        """A table that takes part as floats: a parameter by its full name, or a table widened."""
        found = self._weights.tables.get(name)
        if found is None:
            return self._find_vector(name)
        return found.dequantized() if isinstance(found, QuantizedTable) else np.asarray(found, np.float32)

    # Embeddings

    def embedding(self, ids: Node, table: str) -> Node:
        """Rows of ``table`` for each id."""
        return self._rows(table, lambda rows: ops.gather(rows, ids, integers(0)))

    def position_embedding(self, table: str, start: int = 0) -> Node:
        """Rows ``start … start + T - 1``."""
        first, end = integers([start]), ops.add(self._tokens(), integers([start]))
        picked = self._rows(table, lambda rows: ops.slice(rows, first, end, integers([1]), integers([0])))
        return ops.unsqueeze(picked, integers([0]))

    def table_row(self, table: str, row: int) -> Node:
        """One row of ``table``."""
        return self._rows(table, lambda rows: ops.gather(rows, integers([[row]]), integers(0)))

    def mark_layer(self, x: Node, layer: int) -> None:
        """Of no concern here."""

    def _tokens(self) -> Node:
        """The number of tokens, int64 ``[1]``."""
        if self._token_count is None:
            source = next(iter(self._inputs.values()), None)
            shape = ops.shape_of(self.token_ids() if source is None else source)
            self._token_count = ops.gather(shape, integers([1]), integers(0))
        return self._token_count

    # Layers

    def linear(self, x: Node, weight: str, site: str, activation: ActivationKind | None = None) -> Node:
        """``activation(x @ Wᵀ + b)``."""
        y = self._products.product(x, weight, site)
        if activation is None or (activation == "relu" and self._products.rectifies(weight, site)):
            return y
        return self.activation(y, activation)

    def linears(self, x: Node, weights: tuple[str, ...], site: str) -> tuple[Node, ...]:
        """Several linear layers; as products of their own they are faster than one that is split after."""
        return tuple(self._products.product(x, weight, site) for weight in weights)

    def layer_norm(self, x: Node, norm: str, eps: float, residual: Node | None = None) -> Node:
        """Layer normalisation over the last axis."""
        if residual is not None:
            x = ops.add(x, residual)
        y = ops.mvn(x, integers([-1]), True, float(eps), "inside_sqrt")
        return ops.add(ops.multiply(y, self._vector(f"{norm}.weight")), self._vector(f"{norm}.bias"))

    def activation(self, x: Node, kind: ActivationKind) -> Node:
        """Element-wise activation."""
        if kind == "gelu":
            return ops.gelu(x, "erf")
        if kind == "gelu_tanh":
            return ops.gelu(x, "tanh")
        if kind == "relu":
            return ops.relu(x)
        if kind == "tanh":
            return ops.tanh(x)
        if kind == "silu":
            return ops.swish(x)
        raise StudentError(f"activation {kind!r} is unknown; known are gelu, gelu_tanh, relu, tanh, silu")

    def add(self, a: Node, b: Node) -> Node:
        """Element-wise sum."""
        return ops.add(a, b)

    def add_vector(self, x: Node, vector: str) -> Node:
        """``x`` plus a parameter."""
        return ops.add(x, self._vector(vector))

    def attention(
        self,
        query: Node,
        key: Node,
        value: Node,
        mask: Node,
        heads: int,
        bias: Node | None = None,
        scale: float | None = None,
    ) -> Node:
        """Softmax attention, in the form that the CPU plugin fuses to one kernel."""
        factor = number((width_of(query) // heads) ** -0.5 if scale is None else scale)
        scores = ops.matmul(split_heads(query, heads), split_heads(key, heads, (0, 2, 3, 1)), False, False)
        if bias is not None:
            scores = ops.add(scores, bias)
        scores = ops.add(ops.multiply(scores, factor), self._score_mask(mask))
        return join_heads(ops.matmul(ops.softmax(scores, -1), split_heads(value, heads), False, False))

    def _score_mask(self, mask: Node) -> Node:
        """What is added to the scores, ``[B, 1, 1, T]``; looked up, for arithmetic would be fused into every layer."""
        key = id(mask)
        if key not in self._masks:
            penalties = ops.constant(np.array([MASKED, 0], np.float32))
            added = ops.unsqueeze(ops.gather(penalties, mask, integers(0)), integers([1, 2]))
            self._masks[key] = (mask, added)
        return self._masks[key][1]

    # Positions relative to each other

    def relative_bias(
        self, table: str, bucket_of: Callable[[NDArray[np.int64]], NDArray[np.int64]], factor: float = 1.0
    ) -> Node:
        """``[1, H, T, T]`` of a learned bias for each bucket of offsets."""
        reach = self._max_tokens - 1
        buckets = np.asarray(bucket_of(np.arange(-reach, reach + 1, dtype=np.int64)), np.int32)
        tokens = self._tokens()
        near = ops.slice(
            self._constants.get(f"buckets:{table}", buckets),
            ops.subtract(integers([reach + 1]), tokens),
            ops.add(integers([reach]), tokens),
            integers([1]),
            integers([0]),
        )
        of_offset = self._rows(table, lambda rows: ops.gather(rows, near, integers(0)))
        count = ops.squeeze(tokens, integers([0]))
        place = ops.range(integers(0), count, integers(1), "i64")
        last = ops.subtract(tokens, integers([1]))
        offsets = ops.add(
            ops.subtract(ops.unsqueeze(place, integers([0])), ops.unsqueeze(place, integers([1]))), last
        )
        biases = ops.gather(of_offset, offsets, integers(0))
        of_head = ops.multiply(ops.transpose(biases, integers([2, 0, 1])), number(factor))
        return ops.unsqueeze(of_head, integers([0]))

    def relative_scores(
        self, query: Node, weight: str, basis: Callable[[NDArray[np.int64]], NDArray[np.float32]], heads: int
    ) -> Node:
        """``[B, H, T, T]`` of each query with the position key of its offset.

        All offsets ``T … 1 - T`` are scored, ``[T, 2 T]``, and each row is then moved to its own start by reading
        the numbers in rows of ``2 T - 1`` (Transformer-XL's shift).
        """
        reach = self._max_tokens
        keys = self._constants.get(f"position keys:{weight}", lambda: self._position_keys(weight, basis, reach, heads))
        tokens = self._tokens()
        near = ops.slice(
            keys,
            ops.subtract(integers([reach]), tokens),
            ops.add(integers([reach]), tokens),
            integers([1]),
            integers([1]),
        )
        scores = ops.matmul(split_heads(query, heads), near, False, True)
        shape = ops.shape_of(scores)
        leading = ops.gather(shape, integers([0, 1]), integers(0))
        double = ops.multiply(tokens, integers([2]))
        flat = ops.reshape(scores, ops.concat([leading, ops.multiply(tokens, double)], 0), False)
        axis = integers([-1])
        shifted = ops.slice(flat, tokens, integers([np.iinfo(np.int64).max]), integers([1]), axis)
        short = ops.subtract(double, integers([1]))
        rows = ops.reshape(shifted, ops.concat([leading, tokens, short], 0), False)
        return ops.slice(rows, integers([0]), tokens, integers([1]), axis)

    def _position_keys(
        self, weight: str, basis: Callable[[NDArray[np.int64]], NDArray[np.float32]], reach: int, heads: int
    ) -> NDArray[np.float32]:
        """Keys of offsets ``reach … 1 - reach``: ``[H, 2 * reach, D]``."""
        matrix = self._products.matrix(weight)
        dense = matrix.dequantized() if isinstance(matrix, QuantizedMatrix) else matrix.weight
        keys = np.asarray(basis(np.arange(reach, -reach, -1, dtype=np.int64)), np.float32) @ dense.T
        if matrix.bias is not None:
            keys = keys + matrix.bias
        return keys.reshape(2 * reach, heads, -1).transpose(1, 0, 2).astype(np.float32)

    def segment_scores(self, query: Node, table: str, types: Node, heads: int) -> Node:
        """``[B, H, T, T]`` of each query with the key of "same" or "other" segment."""
        dense = self._small_table(table).reshape(2, heads, -1)
        keys = self._constants.get(f"segment keys:{table}", dense.transpose(1, 0, 2))
        scores = ops.matmul(split_heads(query, heads), keys, False, True)
        same, other = ops.split(scores, integers(-1), 2).outputs()
        differ = ops.not_equal(ops.unsqueeze(types, integers([1, 3])), ops.unsqueeze(types, integers([1, 2])))
        return ops.select(differ, other, same)

    # Reading out

    def token(self, x: Node, index: Literal[0, -1]) -> Node:
        """The first or last token, the axis kept."""
        return ops.gather(x, integers([index]), integers(1))

    def squeeze_token(self, x: Node) -> Node:
        """``[B, 1, W]`` → ``[B, W]``."""
        return ops.squeeze(x, integers([1]))

    def mean_pool(self, x: Node, mask: Node) -> Node:
        """Mean over the tokens that ``mask`` keeps."""
        kept = ops.unsqueeze(ops.convert(mask, "f32"), integers([-1]))
        axis = integers([1])
        count = ops.maximum(ops.reduce_sum(kept, axis, False), number(1))
        return ops.divide(ops.reduce_sum(ops.multiply(x, kept), axis, False), count)

    def l2_normalize(self, x: Node) -> Node:
        """``x / max(‖x‖₂, 1e-12)``."""
        length = ops.sqrt(ops.reduce_sum(ops.multiply(x, x), integers([-1]), True))
        return ops.divide(x, ops.maximum(length, number(1e-12)))
