"""Linear layers, tables and output heads of a decoder's OpenVINO model, and how their numbers are stored.

Quantised weights are integer constants that are widened in the graph, in the form that the CPU plugin runs as a
``FullyConnected`` on the integers themselves, rounding activations to int8 in blocks while it runs:

- int8: ``weight:<names>`` i8 ``[out, in]`` → ``Convert`` f32 → ``Multiply`` by ``scales:<names>`` f32 ``[out, 1]``;
- int4: ``weight:<names>`` i4 ``[out, in / 32, 32]`` → ``Convert`` f16 → ``Multiply`` by ``scales:<names>`` f16
  ``[out, in / 32, 1]`` → ``Reshape`` → ``Convert`` f32.

Layers that read the same input and are stored alike are one product, named by all of them with ``|`` between. A table
is gathered from the widened constant, which the plugin turns into a gather of integers; gathering i4 by itself, to
widen it after, gives wrong rows in OpenVINO 2026.4. A table that is the output head too is stored once.
"""

from __future__ import annotations

import numpy as np
import openvino as ov
import openvino.opset13 as ops
from numpy.typing import NDArray
from openvino.op import Constant

from ...errors import StudentError
from ..quantized_weights import BlockMatrix, FloatMatrix, QuantizedMatrix, QuantizedTable, QuantizedWeights
from .openvino_nodes import NamedConstants, Node, integers

Matrix = QuantizedMatrix | BlockMatrix | FloatMatrix


class DecoderProducts:
    """Writes the linear layers and tables of one model.

    Attributes:
        heights: rows that each stored weight has of each layer in it, by the layers' names joined with ``|``.
    """

    def __init__(self, weights: QuantizedWeights) -> None:
        self._weights = weights
        self._constants = NamedConstants()
        self._widened: dict[str, Node] = {}
        self._calls: dict[str, int] = {}
        self.heights: dict[str, list[int]] = {}

    def matrix(self, name: str) -> Matrix:
        """A linear layer's numbers, or those of a table that is an output head too.

        Raises:
            StudentError: there is no such layer.
        """
        found = self._weights.blocks.get(name) or self._weights.matrices.get(name)
        if found is not None:
            return found
        table = self._weights.tables.get(name)
        if table is None:
            raise StudentError(f"the weights hold no matrix {name!r}; its name in the family's program is wrong")
        if isinstance(table, QuantizedTable):
            return QuantizedMatrix(table.integers, table.scales, None)
        return FloatMatrix(table, None)

    def vector(self, name: str, offset: float = 0.0) -> Node:
        """A parameter by its full name, ``offset`` added.

        Raises:
            StudentError: there is none.
        """
        vector = self._weights.vectors.get(name)
        if vector is None:
            raise StudentError(f"the weights hold no vector {name!r}; its name in the family's program is wrong")
        return self._constants.get(f"vector:{name}", (vector.reshape(-1) + np.float32(offset)).astype(np.float32))

    def height(self, name: str) -> int:
        """Results of a linear layer."""
        return _sizes(self.matrix(name))[0]

    def can_join(self, names: tuple[str, ...]) -> bool:
        """Whether several linear layers can run as one product: of one kind and one input width."""
        found = [self.matrix(name) for name in names]
        return len({(type(matrix), _sizes(matrix)[1]) for matrix in found}) == 1

    def rectifies(self, site: str) -> bool:
        """Whether a site's product is never below nought, so that a ReLU behind it does nothing."""
        return False

    def product(self, x: Node, names: tuple[str, ...], site: str) -> Node:
        """``x @ Wᵀ + b`` for linear layers that can join, side by side."""
        call = self._call(f"linear:{site}")
        y = self._multiplied(x, names, call)
        matrices = [self.matrix(name) for name in names]
        if all(matrix.bias is None for matrix in matrices):
            return y
        bias = np.concatenate(
            [np.zeros(_sizes(each)[0], np.float32) if each.bias is None else each.bias for each in matrices]
        )
        return ops.add(y, self._constants.get(f"bias:{'|'.join(names)}", bias), name=f"{call}/bias")

    def _multiplied(self, x: Node, names: tuple[str, ...], call: str) -> Node:
        """``x @ Wᵀ``."""
        return ops.matmul(x, self._weight(names), False, True, name=call)

    def rows(self, ids: Node, table: str) -> Node:
        """Rows of a table for ``ids`` ``[B, T]``: float32 ``[B, T, W]``."""
        return ops.gather(self._weight((table,)), ids, integers(0), name=self._call(f"rows:{table}"))

    def _weight(self, names: tuple[str, ...]) -> Node:
        """The float32 weight ``[out, in]`` of one product, written at its first use."""
        label = "|".join(names)
        if label not in self._widened:
            matrices = [self.matrix(name) for name in names]
            self.heights[label] = [_sizes(matrix)[0] for matrix in matrices]
            self._widened[label] = self._stored(label, matrices)
        return self._widened[label]

    def _stored(self, label: str, matrices: list[Matrix]) -> Node:
        if isinstance(matrices[0], FloatMatrix):
            floats = np.concatenate([each.weight for each in matrices if isinstance(each, FloatMatrix)])
            return self._constants.get(f"weight:{label}", floats.astype(np.float32))
        if isinstance(matrices[0], QuantizedMatrix):
            codes, factors = self._rows_of(label, matrices)
            return ops.multiply(ops.convert(codes, "f32"), factors)
        quantized = [each for each in matrices if not isinstance(each, FloatMatrix)]
        whole = np.concatenate([each.integers for each in quantized])
        scales = np.concatenate([each.scales for each in quantized])
        factors = self._constants.get(f"scales:{label}", scales.astype(np.float16)[:, :, None])
        blocks = ops.multiply(ops.convert(_int4(f"weight:{label}", whole), "f16"), factors)
        return ops.convert(ops.reshape(blocks, integers([len(whole), -1]), False), "f32")

    def _rows_of(self, label: str, matrices: list[Matrix]) -> tuple[Node, Node]:
        """The int8 constant ``[out, in]`` and the float32 one of scales ``[out, 1]`` of int8 layers."""
        rows = [each for each in matrices if isinstance(each, QuantizedMatrix)]
        codes = self._constants.get(f"weight:{label}", lambda: np.concatenate([each.integers for each in rows]))
        scales = np.concatenate([each.scales for each in rows]).astype(np.float32)[:, None]
        return codes, self._constants.get(f"scales:{label}", scales)

    def _call(self, name: str) -> str:
        self._calls[name] = self._calls.get(name, 0) + 1
        return name if self._calls[name] == 1 else f"{name}@{self._calls[name]}"


def _int4(name: str, values: NDArray[np.int8]) -> Node:
    """An i4 constant of integers within [-8, 7], two to a byte, the first in the low nibble."""
    # A tensor made over a numpy array would not keep the array: the tensor's own memory is filled.
    tensor = ov.Tensor(ov.Type.i4, ov.Shape(list(values.shape)))
    nibbles = values.reshape(-1).view(np.uint8) & np.uint8(15)
    tensor.data.reshape(-1).view(np.uint8)[:] = nibbles[0::2] | (nibbles[1::2] << np.uint8(4))
    constant = Constant(tensor)
    constant.set_friendly_name(name)
    return constant


def unpack_int4(constant: Node) -> NDArray[np.int8]:
    """The integers of an i4 constant, int8 of its shape."""
    packed = np.array(constant.data, copy=True).reshape(-1).view(np.uint8)
    both = np.stack([packed & np.uint8(15), packed >> np.uint8(4)], axis=-1).astype(np.int8)
    signed = np.where(both > 7, both - np.int8(16), both).astype(np.int8)
    return signed.reshape(tuple(constant.get_output_shape(0)))


def _sizes(matrix: Matrix) -> tuple[int, int]:
    if isinstance(matrix, FloatMatrix):
        return matrix.weight.shape[0], matrix.weight.shape[1]
    return matrix.integers.shape[0], int(np.prod(matrix.integers.shape[1:]))
