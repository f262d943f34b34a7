"""A family's program written as an OpenVINO model, operator by operator.

The model takes ``input_ids``, ``attention_mask`` (and ``token_type_ids`` where the program asks for it) as int32
``[batch, tokens]``, both free, and keeps every linear layer and table as int8 constants with float32 scales:

- static: what enters and leaves a site is written as quantise (``FakeQuantize``, ``Convert`` to u8) and dequantise
  (``Convert``, ``Subtract`` zero point, ``Multiply`` scale), which the CPU plugin's low precision passes take for
  u8 x i8 products with everything after the product fused into it;
- dynamic: each token is divided by its own largest magnitude / 127 before an int8 ``FakeQuantize`` and the product
  multiplied by it again, so that the same passes make a i8 x i8 product of it;
- tables: rows are gathered as int8, then widened, so that no table is ever unfolded.

Constants and quantisers carry names (:mod:`edgescribe.converters.export.openvino` reads them back):
``weight:<matrices>``, ``scales:<matrices>`` with matrices as ``name#rows`` joined by ``|``, ``table:<name>``,
``table scales:<name>``, and ``input:<site>``, ``output:<site>`` for the grids.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import openvino as ov
import openvino.opset13 as ops
from numpy.typing import NDArray

from ...errors import StudentError
from ..graph import ActivationKind
from ..quantized_weights import FloatMatrix, Grid, QuantizedMatrix, QuantizedTable, QuantizedWeights, bias_integers

Node = Any
"""An ``openvino.Node`` or ``openvino.Output``."""

MASKED = np.float32(-1e30)
"""What is added to the score of a padding token: its softmax is nought, and no row becomes NaN."""


class OpenVinoGraph:
    """Builds an :class:`openvino.Model`; implements :class:`~edgescribe.converters.graph.GraphBuilder`.

    Args:
        weights: what the constants are taken from.
        max_tokens: longest input served; the range of relative positions.
    """

    whole_layers = False

    def __init__(self, weights: QuantizedWeights, max_tokens: int) -> None:
        self._weights = weights
        self._max_tokens = max_tokens
        self._inputs: dict[str, Node] = {}
        self._outputs: list[Node] = []
        self._constants: dict[str, Node] = {}
        self._calls: dict[str, int] = {}
        self._masks: dict[int, tuple[Node, Node]] = {}

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

    # Constants

    def _constant(self, name: str, array: NDArray[Any] | Callable[[], NDArray[Any]]) -> Node:
        """A constant that the file names and holds once, its data copied into the model."""
        if name not in self._constants:
            data = np.ascontiguousarray(array() if callable(array) else array)
            self._constants[name] = ops.constant(data, shared_memory=False, name=name)
        return self._constants[name]

    def _vector(self, name: str) -> Node:
        return self._constant(f"vector:{name}", lambda: self._find_vector(name).reshape(-1))

    def _find_vector(self, name: str) -> NDArray[np.float32]:
        vector = self._weights.vectors.get(name)
        if vector is None:
            raise StudentError(f"the student has no parameter {name!r}, which its family's program reads")
        return np.asarray(vector, np.float32)

    def _find_matrix(self, name: str) -> QuantizedMatrix | FloatMatrix:
        matrix = self._weights.matrices.get(name)
        if matrix is None:
            raise StudentError(f"the student has no linear layer {name!r}, which its family's program reads")
        return matrix

    def _find_table(self, name: str) -> QuantizedTable | NDArray[np.float32]:
        table = self._weights.tables.get(name)
        if table is None:
            raise StudentError(f"the student has no table {name!r}, which its family's program reads")
        return table

    # Embeddings

    def _rows(self, table: str, pick: Callable[[Node], Node]) -> Node:
        """Rows of ``table``, picked as int8 and widened after; ``pick`` maps ``[rows, n]`` to ``[…, n]``."""
        found = self._find_table(table)
        if not isinstance(found, QuantizedTable):
            return pick(self._constant(f"table:{table}", lambda: np.asarray(found, np.float32)))
        integers = pick(self._constant(f"table:{table}", found.integers))
        scales = pick(self._constant(f"table scales:{table}", found.scales.reshape(-1, 1)))
        return ops.multiply(ops.convert(integers, "f32"), scales)

    def embedding(self, ids: Node, table: str) -> Node:
        """Rows of ``table`` for each id."""
        return self._rows(table, lambda rows: ops.gather(rows, ids, _integers(0)))

    def position_embedding(self, table: str, start: int = 0) -> Node:
        """Rows ``start … start + T - 1``."""
        first, end = _integers([start]), ops.add(self._tokens(), _integers([start]))
        picked = self._rows(table, lambda rows: ops.slice(rows, first, end, _integers([1]), _integers([0])))
        return ops.unsqueeze(picked, _integers([0]))

    def table_row(self, table: str, row: int) -> Node:
        """One row of ``table``."""
        return self._rows(table, lambda rows: ops.gather(rows, _integers([[row]]), _integers(0)))

    def mark_layer(self, x: Node, layer: int) -> None:
        """Of no concern here."""

    def _tokens(self) -> Node:
        """The number of tokens, int64 ``[1]``."""
        if "tokens" not in self._constants:
            source = next(iter(self._inputs.values()))
            self._constants["tokens"] = ops.gather(ops.shape_of(source), _integers([1]), _integers(0))
        return self._constants["tokens"]

    # Layers

    def linear(self, x: Node, weight: str, site: str, activation: ActivationKind | None = None) -> Node:
        """``activation(x @ Wᵀ + b)``."""
        y = self._product(x, (weight,), site)
        if activation is None or (activation == "relu" and site in self._weights.sites):
            return y
        return self.activation(y, activation)

    def linears(self, x: Node, weights: tuple[str, ...], site: str) -> tuple[Node, ...]:
        """Several linear layers as one product, split after it."""
        y = self._product(x, weights, site)
        if len(weights) == 1:
            return (y,)
        rows = [_row_count(self._find_matrix(name)) for name in weights]
        return tuple(ops.variadic_split(y, _integers(-1), _integers(rows)).outputs())

    def _product(self, x: Node, names: Sequence[str], site: str) -> Node:
        """``x @ Wᵀ + b`` on the site's grids, the matrices' rows one after the other."""
        matrices = [self._find_matrix(name) for name in names]
        label = "|".join(f"{name}#{_row_count(matrix)}" for name, matrix in zip(names, matrices, strict=True))
        quantized = [matrix for matrix in matrices if isinstance(matrix, QuantizedMatrix)]
        if len(quantized) != len(matrices):
            return self._float_product(x, label, matrices, site)
        integers = self._constant(f"weight:{label}", lambda: np.concatenate([m.integers for m in quantized]))
        scales = self._constant(
            f"scales:{label}", lambda: np.concatenate([m.scales for m in quantized]).astype(np.float32)[:, None]
        )
        weight = ops.multiply(ops.convert(integers, "f32"), scales)
        if self._weights.precision == "w8a8-dynamic":
            return self._dynamic_product(x, weight, label, quantized, site)
        grids = self._weights.sites.get(site)
        if grids is None:
            raise StudentError(f"site {site!r} has no activation grids: {names[0]!r} cannot be static int8; calibrate")
        x = self._on_grid(x, grids.input, f"input:{site}")
        name = self._call(f"linear:{site}")
        y = ops.matmul(x, weight, False, True, name=name)
        if any(matrix.bias is not None for matrix in quantized):
            bias = np.concatenate([
                bias_integers(m, grids.input) * (m.scales.astype(np.float64) * grids.input.scale) for m in quantized
            ])
            y = ops.add(y, self._constant(f"bias:{site}:{label}", bias.astype(np.float32)), name=f"{name}/bias")
        return self._on_grid(y, grids.output, f"output:{site}")

    def _float_product(
        self, x: Node, label: str, matrices: Sequence[QuantizedMatrix | FloatMatrix], site: str
    ) -> Node:
        weight = self._constant(
            f"weight:{label}",
            lambda: np.concatenate([m.weight if isinstance(m, FloatMatrix) else m.dequantized() for m in matrices]),
        )
        name = self._call(f"linear:{site}")
        return self._add_bias(ops.matmul(x, weight, False, True, name=name), label, matrices, name)

    def _dynamic_product(
        self, x: Node, weight: Node, label: str, matrices: Sequence[QuantizedMatrix], site: str
    ) -> Node:
        """``x`` on an int8 grid of each token's own, taken while running."""
        largest = ops.reduce_max(ops.abs(x), _integers([-1]), True)
        step = ops.multiply(ops.maximum(largest, _float(1e-8)), _float(1 / 127))
        low, high = _float(-128), _float(127)
        integers = ops.fake_quantize(ops.divide(x, step), low, high, low, high, 256, name=self._call(f"input:{site}"))
        name = self._call(f"linear:{site}")
        y = ops.multiply(ops.matmul(integers, weight, False, True, name=name), step)
        return self._add_bias(y, label, matrices, name)

    def _add_bias(
        self, y: Node, label: str, matrices: Sequence[QuantizedMatrix | FloatMatrix], name: str
    ) -> Node:
        if all(matrix.bias is None for matrix in matrices):
            return y
        biases = [
            np.zeros(_row_count(matrix), np.float32) if matrix.bias is None else matrix.bias for matrix in matrices
        ]
        bias = self._constant(f"bias:{label}", lambda: np.concatenate(biases).astype(np.float32))
        return ops.add(y, bias, name=f"{name}/bias")

    def _call(self, name: str) -> str:
        """A node's name; a site that is called again gets ``@2``, ``@3``, … behind it."""
        self._calls[name] = self._calls.get(name, 0) + 1
        return name if self._calls[name] == 1 else f"{name}@{self._calls[name]}"

    def _on_grid(self, x: Node, grid: Grid, name: str) -> Node:
        """``x`` rounded to an int8 grid, written as u8 (zero point + 128)."""
        zero = grid.zero_point + 128
        scale = np.float32(grid.scale)
        low = _float(-scale * np.float32(zero))
        high = _float(scale * np.float32(255 - zero))
        integers = ops.fake_quantize(x, low, high, _float(0), _float(255), 256, name=self._call(name))
        back = ops.convert(ops.convert(integers, "u8"), "f32")
        if zero:
            back = ops.subtract(back, self._constant(f"zero point:{name}", np.asarray(zero, np.float32)))
        return ops.multiply(back, self._constant(f"scale:{name}", np.asarray(scale)))

    def layer_norm(self, x: Node, norm: str, eps: float, residual: Node | None = None) -> Node:
        """Layer normalisation over the last axis."""
        if residual is not None:
            x = ops.add(x, residual)
        y = ops.mvn(x, _integers([-1]), True, float(eps), "inside_sqrt")
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
        """Softmax attention, as the one operator that the CPU plugin runs fused."""
        q, k, v = (_split_heads(x, heads) for x in (query, key, value))
        width = _last(query) // heads
        factor = width**-0.5 if scale is None else scale
        added = self._score_mask(mask)
        if bias is not None:
            added = ops.add(ops.multiply(bias, _float(factor)), added)
        y = ops.scaled_dot_product_attention(q, k, v, added, _float(factor), False)
        return _join_heads(y, heads * (_last(value) // heads))

    def _score_mask(self, mask: Node) -> Node:
        """What is added to the scores, ``[B, 1, 1, T]``: nought for a token."""
        key = id(mask)
        if key not in self._masks:
            padding = ops.subtract(_float(1), ops.convert(mask, "f32"))
            added = ops.multiply(ops.unsqueeze(padding, _integers([1, 2])), _float(MASKED))
            self._masks[key] = (mask, added)
        return self._masks[key][1]

    # Positions relative to each other

    def relative_bias(self, table: str, bucket_of: Callable[[NDArray[np.int64]], NDArray[np.int64]]) -> Node:
        """``[1, H, T, T]`` of a learned bias for each bucket of offsets."""
        reach = self._max_tokens - 1
        buckets = np.asarray(bucket_of(np.arange(-reach, reach + 1, dtype=np.int64)), np.int32)
        tokens = self._tokens()
        near = ops.slice(
            self._constant(f"buckets:{table}", buckets),
            ops.subtract(_integers([reach + 1]), tokens),
            ops.add(_integers([reach]), tokens),
            _integers([1]),
            _integers([0]),
        )
        of_offset = self._rows(table, lambda rows: ops.gather(rows, near, _integers(0)))
        count = ops.squeeze(tokens, _integers([0]))
        place = ops.range(_integers(0), count, _integers(1), "i64")
        last = ops.subtract(tokens, _integers([1]))
        offsets = ops.add(
            ops.subtract(ops.unsqueeze(place, _integers([0])), ops.unsqueeze(place, _integers([1]))), last
        )
        biases = ops.gather(of_offset, offsets, _integers(0))
        return ops.unsqueeze(ops.transpose(biases, _integers([2, 0, 1])), _integers([0]))

    def relative_scores(
        self, query: Node, weight: str, basis: Callable[[NDArray[np.int64]], NDArray[np.float32]], heads: int
    ) -> Node:
        """``[B, H, T, T]`` of each query with the position key of its offset.

        All offsets ``T … 1 - T`` are scored, ``[T, 2 T]``, and each row is then moved to its own start by reading
        the numbers in rows of ``2 T - 1`` (Transformer-XL's shift).
        """
        reach = self._max_tokens
        keys = self._constant(f"position keys:{weight}", lambda: self._position_keys(weight, basis, reach, heads))
        tokens = self._tokens()
        near = ops.slice(
            keys,
            ops.subtract(_integers([reach]), tokens),
            ops.add(_integers([reach]), tokens),
            _integers([1]),
            _integers([1]),
        )
        scores = ops.matmul(_split_heads(query, heads), near, False, True)
        shape = ops.shape_of(scores)
        leading = ops.gather(shape, _integers([0, 1]), _integers(0))
        double = ops.multiply(tokens, _integers([2]))
        flat = ops.reshape(scores, ops.concat([leading, ops.multiply(tokens, double)], 0), False)
        axis = _integers([-1])
        shifted = ops.slice(flat, tokens, _integers([np.iinfo(np.int64).max]), _integers([1]), axis)
        short = ops.subtract(double, _integers([1]))
        rows = ops.reshape(shifted, ops.concat([leading, tokens, short], 0), False)
        return ops.slice(rows, _integers([0]), tokens, _integers([1]), axis)

    def _position_keys(
        self, weight: str, basis: Callable[[NDArray[np.int64]], NDArray[np.float32]], reach: int, heads: int
    ) -> NDArray[np.float32]:
        """Keys of offsets ``reach … 1 - reach``: ``[H, 2 * reach, D]``."""
        matrix = self._find_matrix(weight)
        dense = matrix.dequantized() if isinstance(matrix, QuantizedMatrix) else matrix.weight
        keys = np.asarray(basis(np.arange(reach, -reach, -1, dtype=np.int64)), np.float32) @ dense.T
        if matrix.bias is not None:
            keys = keys + matrix.bias
        return keys.reshape(2 * reach, heads, -1).transpose(1, 0, 2).astype(np.float32)

    def segment_scores(self, query: Node, table: str, types: Node, heads: int) -> Node:
        """``[B, H, T, T]`` of each query with the key of "same" or "other" segment."""
        found = self._weights.tables.get(table)
        if isinstance(found, QuantizedTable):
            dense = found.dequantized()
        else:
            dense = np.asarray(found, np.float32) if found is not None else self._find_vector(table)
        keys = self._constant(
            f"segment keys:{table}", lambda: dense.reshape(2, heads, -1).transpose(1, 0, 2).astype(np.float32)
        )
        scores = ops.matmul(_split_heads(query, heads), keys, False, True)
        same, other = ops.split(scores, _integers(-1), 2).outputs()
        differ = ops.not_equal(ops.unsqueeze(types, _integers([1, 3])), ops.unsqueeze(types, _integers([1, 2])))
        return ops.select(differ, other, same)

    # Reading out

    def token(self, x: Node, index: Literal[0, -1]) -> Node:
        """The first or last token, the axis kept."""
        return ops.gather(x, _integers([index]), _integers(1))

    def squeeze_token(self, x: Node) -> Node:
        """``[B, 1, W]`` → ``[B, W]``."""
        return ops.squeeze(x, _integers([1]))

    def mean_pool(self, x: Node, mask: Node) -> Node:
        """Mean over the tokens that ``mask`` keeps."""
        kept = ops.unsqueeze(ops.convert(mask, "f32"), _integers([-1]))
        axis = _integers([1])
        count = ops.maximum(ops.reduce_sum(kept, axis, False), _float(1))
        return ops.divide(ops.reduce_sum(ops.multiply(x, kept), axis, False), count)

    def l2_normalize(self, x: Node) -> Node:
        """``x / max(‖x‖₂, 1e-12)``."""
        length = ops.sqrt(ops.reduce_sum(ops.multiply(x, x), _integers([-1]), True))
        return ops.divide(x, ops.maximum(length, _float(1e-12)))


def _row_count(matrix: QuantizedMatrix | FloatMatrix) -> int:
    return len(matrix.integers if isinstance(matrix, QuantizedMatrix) else matrix.weight)


def _integers(value: int | Sequence[int] | Sequence[Sequence[int]]) -> Node:
    return ops.constant(np.asarray(value, np.int64))


def _float(value: float | np.float32) -> Node:
    return ops.constant(np.asarray(value, np.float32))


def _last(x: Node) -> int:
    """Width of the last axis."""
    return int(_output(x).get_partial_shape()[-1].get_length())


def _output(x: Node) -> Any:
    return x if isinstance(x, ov.Output) else x.output(0)


def _split_heads(x: Node, heads: int) -> Node:
    """``[B, T, H*D]`` → ``[B, H, T, D]``."""
    split = ops.reshape(x, _integers([0, 0, heads, _last(x) // heads]), True)
    return ops.transpose(split, _integers([0, 2, 1, 3]))


def _join_heads(x: Node, width: int) -> Node:
    """``[B, H, T, D]`` → ``[B, T, H*D]``."""
    return ops.reshape(ops.transpose(x, _integers([0, 2, 1, 3])), _integers([0, 0, width]), True)
