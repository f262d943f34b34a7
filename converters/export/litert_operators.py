"""The LiteRT operators that exported programs use, each a function of tensors that works out the result's shape.

An operator carries the lowest version that has what is used of it, so that older engines (TensorFlow Lite 2.14)
load the file too: an engine refuses versions that it does not know, and takes lower ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from .litert_flatbuffer import Quantization, Subgraph

UNARY = ("LOGISTIC", "RELU", "RSQRT", "TANH")
"""Element-wise operators of one tensor without options."""


class Operators:
    """Appends operators to a subgraph. Tensors go by their index; results are float32 unless said otherwise."""

    def __init__(self, graph: Subgraph) -> None:
        self.graph = graph

    def shape(self, tensor: int) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self.graph.shape(tensor)

    # Constants
    def real(self, name: str, values: NDArray[np.floating[Any]] | float) -> int:
        """A float32 constant."""
        return self.graph.constant(name, np.asarray(values, np.float32))

    def _integers(self, *values: int) -> int:
        return self.graph.constant("/".join(str(value) for value in values), np.asarray(values, np.int32))

    # Element-wise
    def _binary(self, operator: str, options: str, a: int, b: int) -> int:
        result = self.graph.tensor(operator.lower(), np.broadcast_shapes(self.shape(a), self.shape(b)), "float32")
        self.graph.operator(operator, [a, b], [result], options_type=options)
        return result

    def add(self, a: int, b: int) -> int:
        """``a + b`` with broadcasting."""
        return self._binary("ADD", "AddOptions", a, b)

    def shifted(self, indices: int, offset: int) -> int:
        """The sum of int32 tensors, with broadcasting."""
        shape = np.broadcast_shapes(self.shape(indices), self.shape(offset))
        result = self.graph.tensor("add", shape, "int32")
        self.graph.operator("ADD", [indices, offset], [result], options_type="AddOptions")
        return result

    def subtract(self, a: int, b: int) -> int:
        """``a - b`` with broadcasting."""
        return self._binary("SUB", "SubOptions", a, b)

    def multiply(self, a: int, b: int) -> int:
        """``a * b`` with broadcasting."""
        return self._binary("MUL", "MulOptions", a, b)

    def divide(self, a: int, b: int) -> int:
        """``a / b`` with broadcasting."""
        return self._binary("DIV", "DivOptions", a, b)

    def maximum(self, a: int, b: int) -> int:
        """The larger of both, with broadcasting."""
        return self._binary("MAXIMUM", "MaximumMinimumOptions", a, b)

    def minimum(self, a: int, b: int) -> int:
        """The smaller of both, with broadcasting."""
        return self._binary("MINIMUM", "MaximumMinimumOptions", a, b)

    def unary(self, operator: str, x: int) -> int:
        """One of ``UNARY``."""
        return self._same_shape(operator, x)

    def gelu(self, x: int, approximate: bool) -> int:
        """GELU, exact or by its tanh approximation."""
        return self._same_shape("GELU", x, options_type="GeluOptions", approximate=approximate)

    def softmax(self, x: int) -> int:
        """Softmax over the last axis."""
        return self._same_shape("SOFTMAX", x, options_type="SoftmaxOptions", beta=1.0)

    def _same_shape(self, operator: str, x: int, version: int = 1, **options: Any) -> int:
        result = self.graph.tensor(operator.lower(), self.shape(x), "float32")
        self.graph.operator(operator, [x], [result], version, **options)
        return result

    # Grids
    def quantize(self, x: int, grid: Quantization, name: str) -> int:
        """A float32 tensor rounded to an int8 grid."""
        result = self.graph.tensor(name, self.shape(x), "int8", grid)
        self.graph.operator("QUANTIZE", [x], [result])
        return result

    def dequantize(self, x: int) -> int:
        """An int8 tensor as float32."""
        return self._same_shape("DEQUANTIZE", x, version=2)

    def widen(self, x: int) -> int:
        """int32 as float32."""
        options = {"inDataType": schema.TensorType.INT32, "outDataType": schema.TensorType.FLOAT32}
        return self._same_shape("CAST", x, options_type="CastOptions", **options)

    # Moving: int8 tensors stay on their grid
    def _moved(self, operator: str, inputs: Sequence[int], shape: Sequence[int], **options: Any) -> int:
        source = inputs[0]
        dtype = self.graph.dtype(source)
        result = self.graph.tensor(operator.lower(), shape, dtype, self.graph.quantization(source))
        version = 2 if dtype == "int8" and operator != "RESHAPE" else 1
        self.graph.operator(operator, inputs, [result], version, **options)
        return result

    def reshape(self, x: int, shape: Sequence[int], free: int | None = None) -> int:
        """``x`` with other axes, row by row; ``x`` itself where it has that shape.

        ``free``: the axis whose size the engine is to work out, where the caller may resize inputs.
        """
        if tuple(shape) == self.shape(x):
            return x
        written = [-1 if axis == free else size for axis, size in enumerate(shape)]
        new = np.asarray(written, np.int32)
        inputs = [x, self._integers(*written)]
        return self._moved("RESHAPE", inputs, shape, options_type="ReshapeOptions", newShape=new)

    def transpose(self, x: int, order: Sequence[int]) -> int:
        """``x`` with its axes in another order."""
        shape = [self.shape(x)[axis] for axis in order]
        return self._moved("TRANSPOSE", [x, self._integers(*order)], shape, options_type="TransposeOptions")

    def cut(self, x: int, start: Sequence[int], shape: Sequence[int]) -> int:
        """The block of ``shape`` that begins at ``start``; ``x`` itself where that is all of it."""
        if tuple(shape) == self.shape(x):
            return x
        inputs = [x, self._integers(*start), self._integers(*shape)]
        return self._moved("SLICE", inputs, shape, options_type="SliceOptions")

    def split(self, x: int, axis: int, parts: int) -> list[int]:
        """Float32 ``x`` in so many equal parts along ``axis``; ``x`` itself where it is one."""
        if parts == 1:
            return [x]
        shape = list(self.shape(x))
        shape[axis] //= parts
        results = [self.graph.tensor("split", shape, "float32") for _ in range(parts)]
        self.graph.operator("SPLIT", [self._integers(axis), x], results, options_type="SplitOptions", numSplits=parts)
        return results

    def rows(self, table: int, indices: int) -> int:
        """Rows of ``table`` ``[V, …]`` at int32 ``indices``: ``[*indices, …]``, of the table's dtype and grid."""
        shape = (*self.shape(indices), *self.shape(table)[1:])
        return self._moved("GATHER", [table, indices], shape, options_type="GatherOptions", axis=0)

    def picked(self, x: int, indices: int) -> int:
        """Along the last axis of ``x`` ``[…, V]`` its elements at int32 ``indices``: ``[…, *indices]``."""
        shape = (*self.shape(x)[:-1], *self.shape(indices))
        axis = len(self.shape(x)) - 1
        return self._moved("GATHER", [x, indices], shape, options_type="GatherOptions", axis=axis)

    def looked_up(self, table: int, indices: int) -> int:
        """Rows of ``table`` ``[V, W]``, quantised or not, at int32 ``indices`` ``[n]``: float32 ``[n, W]``."""
        shape = (*self.shape(indices), self.shape(table)[1])
        result = self.graph.tensor("embedding_lookup", shape, "float32")
        version = {"int8": 3, "int4": 4}.get(self.graph.dtype(table), 1)
        self.graph.operator("EMBEDDING_LOOKUP", [indices, table], [result], version)
        return result

    def joined(self, parts: Sequence[int], axis: int) -> int:
        """Float32 tensors one behind the other along ``axis``; a single one stays as it is."""
        if len(parts) == 1:
            return parts[0]
        shape = list(self.shape(parts[0]))
        shape[axis] = sum(self.shape(part)[axis] for part in parts)
        none = schema.ActivationFunctionType.NONE
        return self._moved(
            "CONCATENATION", parts, shape, options_type="ConcatenationOptions", axis=axis, fusedActivationFunction=none
        )

    def updated(self, whole: int, part: int, start: int) -> int:
        """Float32 ``whole`` with ``part`` written over what begins at int32 ``start`` (one number for each axis).

        The engine works in place where the result is bound to the memory of ``whole``. A part that would reach
        beyond the end is moved back.
        """
        return self._moved(
            "DYNAMIC_UPDATE_SLICE", [whole, part, start], self.shape(whole),
            options_type="DynamicUpdateSliceOptions",
        )  # fmt: skip

    # Reducing and multiplying
    def mean(self, x: int) -> int:
        """Mean over the last axis, which stays with size 1."""
        return self._reduced("MEAN", x)

    def sum(self, x: int) -> int:
        """Sum over the last axis, which stays with size 1."""
        return self._reduced("SUM", x)

    def _reduced(self, operator: str, x: int) -> int:
        *kept, _ = self.shape(x)
        result = self.graph.tensor(operator.lower(), (*kept, 1), "float32")
        inputs = [x, self._integers(len(kept))]
        self.graph.operator(operator, inputs, [result], options_type="ReducerOptions", keepDims=True)
        return result

    def product(self, a: int, b: int, transposed: bool = False) -> int:
        """Matrix products over the last two axes, the leading ones equal: ``a @ b``, or ``a @ bᵀ``."""
        columns = self.shape(b)[-2 if transposed else -1]
        result = self.graph.tensor("product", (*self.shape(a)[:-1], columns), "float32")
        self.graph.operator("BATCH_MATMUL", [a, b], [result], options_type="BatchMatMulOptions", adjY=transposed)
        return result

    def fully_connected(
        self, x: int, weight: int, bias: int, name: str, grid: Quantization | None = None, relu: bool = False
    ) -> int:
        """``x @ weightᵀ + bias``: int8 on ``grid`` where one is given (then ``x`` is int8 as well), else float32.

        Float32 ``x`` with int8 or int4 weights makes the engine round each row of ``x`` to int8 while running.
        ``bias`` -1: none.
        """
        shape = (*self.shape(x)[:-1], self.shape(weight)[0])
        result = self.graph.tensor(name, shape, "float32" if grid is None else "int8", grid)
        dynamic = grid is None and self.graph.dtype(weight) in ("int8", "int4")
        activation = schema.ActivationFunctionType.RELU if relu else schema.ActivationFunctionType.NONE
        self.graph.operator(
            "FULLY_CONNECTED",
            [x, weight, bias],
            [result],
            version=9 if dynamic else 4 if grid is not None else 2,
            options_type="FullyConnectedOptions",
            fusedActivationFunction=activation,
            keepNumDims=True,
            asymmetricQuantizeInputs=dynamic,
        )
        return result
