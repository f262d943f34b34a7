"""Writes .tflite files: tensors, constants, operators and signatures, packed with the engine's own schema.

The format is the FlatBuffers schema that ships with LiteRT (``ai_edge_litert.schema_py_generated``, file
identifier ``TFL3``). Constants with the same bytes are stored once for the whole file, whichever subgraphs use
them, and so are equal quantisation parameters. Constants start at multiples of 16 bytes, as the engine's kernels
ask of memory-mapped weights.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from ...errors import OutputError

ALIGNMENT = 16

_TENSOR_TYPES = {
    "float32": schema.TensorType.FLOAT32,
    "int32": schema.TensorType.INT32,
    "int8": schema.TensorType.INT8,
    "float16": schema.TensorType.FLOAT16,
    "int4": schema.TensorType.INT4,
}
DTYPES = {code: name for name, code in _TENSOR_TYPES.items()}
"""numpy's name of a dtype by the schema's code, for the dtypes that are written here (numpy itself has no int4)."""


@dataclass(frozen=True)
class Quantization:
    """``real = scale * (integer - zero_point)``: one scale, or one for each index of ``axis``."""

    scales: tuple[float, ...]
    zero_points: tuple[int, ...]
    axis: int = 0


class _AlignedBuffer(schema.BufferT):  # type: ignore[misc]
    """A buffer whose bytes start at a multiple of ``ALIGNMENT``, which the generated packer does not see to."""

    def Pack(self, builder: Any) -> Any:
        data = None
        if self.data:
            builder.StartVector(1, len(self.data), ALIGNMENT)
            builder.head -= len(self.data)
            builder.Bytes[builder.Head() : builder.Head() + len(self.data)] = self.data
            data = builder.EndVector()
        schema.BufferStart(builder)
        if data is not None:
            schema.BufferAddData(builder, data)
        return schema.BufferEnd(builder)


class _SharedParameters(schema.QuantizationParametersT):  # type: ignore[misc]
    """Quantisation parameters that are packed once for all tensors that refer to them.

    The engine wants as many zero points as scales, 8 bytes each, though all of a weight's are 0: equal vectors of
    them are packed once as well.
    """

    def __init__(self, quantization: Quantization, vectors: dict[bytes, Any]) -> None:
        super().__init__()
        self.scale = np.asarray(quantization.scales, np.float32)
        self.zeroPoint = np.asarray(quantization.zero_points, np.int64)
        self.quantizedDimension = quantization.axis
        self._vectors, self._packed = vectors, None

    def Pack(self, builder: Any) -> Any:
        if self._packed is None:
            scale, zero_point = self._vector(builder, self.scale), self._vector(builder, self.zeroPoint)
            schema.QuantizationParametersStart(builder)
            schema.QuantizationParametersAddScale(builder, scale)
            schema.QuantizationParametersAddZeroPoint(builder, zero_point)
            schema.QuantizationParametersAddQuantizedDimension(builder, self.quantizedDimension)
            self._packed = schema.QuantizationParametersEnd(builder)
        return self._packed

    def _vector(self, builder: Any, values: NDArray[Any]) -> Any:
        key = values.dtype.name.encode() + values.tobytes()
        if key not in self._vectors:
            self._vectors[key] = builder.CreateNumpyVector(values)
        return self._vectors[key]


class FlatbufferFile:
    """A .tflite file in the making: subgraphs, each with a signature, over one store of constants."""

    def __init__(self, description: str) -> None:
        self._model = schema.ModelT()
        self._model.version = 3
        self._model.description = description
        self._model.operatorCodes = []
        self._model.subgraphs = []
        self._model.signatureDefs = []
        self._model.buffers = [_AlignedBuffer()]
        self._buffer_of: dict[bytes, int] = {}
        self._code_of: dict[tuple[int, int], int] = {}
        self._parameters_of: dict[Quantization, _SharedParameters] = {}
        self._vectors: dict[bytes, Any] = {}
        self._bytes = 0

    def subgraph(self, name: str) -> Subgraph:
        """A new, empty subgraph."""
        return Subgraph(self, name)

    def buffer(self, array: NDArray[Any]) -> int:
        """Index of the buffer that holds the array's bytes (little-endian, row by row)."""
        data = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
        key = hashlib.sha256(data).digest()
        if key not in self._buffer_of:
            entry = _AlignedBuffer()
            entry.data = data
            self._model.buffers.append(entry)
            self._buffer_of[key] = len(self._model.buffers) - 1
            self._bytes += len(data)
        return self._buffer_of[key]

    def operator_code(self, operator: str, version: int) -> int:
        """Index of an operator's entry (name as in the schema's ``BuiltinOperator``) at ``version``."""
        code = getattr(schema.BuiltinOperator, operator)
        key = (code, version)
        if key not in self._code_of:
            entry = schema.OperatorCodeT()
            entry.builtinCode = code
            entry.deprecatedBuiltinCode = min(code, 127)
            entry.version = version
            self._model.operatorCodes.append(entry)
            self._code_of[key] = len(self._model.operatorCodes) - 1
        return self._code_of[key]

    def parameters(self, quantization: Quantization) -> schema.QuantizationParametersT:
        """The one entry of these quantisation parameters."""
        if quantization not in self._parameters_of:
            self._parameters_of[quantization] = _SharedParameters(quantization, self._vectors)
        return self._parameters_of[quantization]

    def add(self, subgraph: Any, signature: Any) -> None:
        """Append a finished subgraph with its signature."""
        signature.subgraphIndex = len(self._model.subgraphs)
        self._model.subgraphs.append(subgraph)
        self._model.signatureDefs.append(signature)

    def to_bytes(self) -> bytes:
        """The file's content. To be called once: what is shared refers to the bytes then made."""
        builder = flatbuffers.Builder(self._bytes + 65536)
        builder.Finish(self._model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


class Subgraph:
    """One subgraph: tensors are referred to by their index."""

    def __init__(self, file: FlatbufferFile, name: str) -> None:
        self._file = file
        self._graph = schema.SubGraphT()
        self._graph.name = name
        self._graph.tensors, self._graph.operators = [], []
        self._constants: dict[tuple[Any, ...], int] = {}
        self._names: dict[str, int] = {}
        self._quantizations: dict[int, Quantization] = {}

    def tensor(
        self, name: str, shape: Sequence[int], dtype: str, quantization: Quantization | None = None, buffer: int = 0
    ) -> int:
        """A tensor that is computed (buffer 0) or constant. A name already taken gets ``#2``, ``#3``…"""
        count = self._names[name] = self._names.get(name, 0) + 1
        entry = schema.TensorT()
        entry.name = name if count == 1 else f"{name}#{count}"
        entry.shape = np.asarray(shape, np.int32)
        entry.type = _TENSOR_TYPES[dtype]
        entry.buffer = buffer
        if quantization is not None:
            entry.quantization = self._file.parameters(quantization)
            self._quantizations[len(self._graph.tensors)] = quantization
        self._graph.tensors.append(entry)
        return len(self._graph.tensors) - 1

    def constant(self, name: str, array: NDArray[Any], quantization: Quantization | None = None) -> int:
        """A constant tensor of the array's dtype and shape; the same constant asked for again is the same tensor.

        Constants of other names with the same bytes are tensors of their own on the same buffer.
        """
        buffer = self._file.buffer(array)
        key = (name, buffer, array.shape, array.dtype.name, quantization)
        if key not in self._constants:
            self._constants[key] = self.tensor(name, array.shape, array.dtype.name, quantization, buffer)
        return self._constants[key]

    def blocks(self, name: str, integers: NDArray[np.int8], scales: NDArray[np.float32]) -> int:
        """A constant int4 tensor ``[rows, columns]`` in blocks along its rows.

        ``integers`` int8 ``[rows, blocks, width of a block]`` within [-8, 7], ``scales`` ``[rows, blocks]``, exact in
        float16. Two integers share a byte, the first in its lower half. Asked for again it is the same tensor.
        """
        rows, _, width = integers.shape
        nibbles = integers.reshape(rows, -1).view(np.uint8) & np.uint8(15)
        buffer = self._file.buffer(nibbles[:, 0::2] | (nibbles[:, 1::2] << np.uint8(4)))
        key = (name, buffer)
        if key not in self._constants:
            grid = schema.QuantizationParametersT()
            grid.detailsType = schema.QuantizationDetails.BlockwiseQuantization
            grid.details = schema.BlockwiseQuantizationT()
            grid.details.scales = self.constant(f"{name}/scales", scales.astype(np.float16))
            grid.details.zeroPoints = -1
            grid.details.blockSize = width
            tensor = self.tensor(name, (rows, integers.shape[1] * width), "int4", buffer=buffer)
            self._graph.tensors[tensor].quantization = grid
            self._constants[key] = tensor
        return self._constants[key]

    def shape(self, tensor: int) -> tuple[int, ...]:
        """Shape of a tensor."""
        return tuple(int(size) for size in self._graph.tensors[tensor].shape)

    def dtype(self, tensor: int) -> str:
        """numpy's name of a tensor's dtype."""
        return DTYPES[self._graph.tensors[tensor].type]

    def quantization(self, tensor: int) -> Quantization | None:
        """The grid that a tensor was declared with."""
        return self._quantizations.get(tensor)

    def operator(
        self, name: str, inputs: Sequence[int], outputs: Sequence[int], version: int = 1, **options: Any
    ) -> None:
        """Append an operator. ``options`` are the fields of its options table; ``options_type`` names the table."""
        entry = schema.OperatorT()
        entry.opcodeIndex = self._file.operator_code(name, version)
        entry.inputs = np.asarray(inputs, np.int32)
        entry.outputs = np.asarray(outputs, np.int32)
        table = options.pop("options_type", None)
        if table is not None:
            entry.builtinOptionsType = getattr(schema.BuiltinOptions, table)
            entry.builtinOptions = getattr(schema, table + "T")()
            for field, value in options.items():
                setattr(entry.builtinOptions, field, value)
        self._graph.operators.append(entry)

    def finish(self, signature: str, inputs: Mapping[str, int], outputs: Mapping[str, int]) -> None:
        """Close the subgraph and make it callable as ``signature`` with these named tensors."""
        self._graph.inputs = np.asarray(list(inputs.values()), np.int32)
        self._graph.outputs = np.asarray(list(outputs.values()), np.int32)
        entry = schema.SignatureDefT()
        entry.signatureKey = signature
        entry.inputs = [_tensor_map(name, tensor) for name, tensor in inputs.items()]
        entry.outputs = [_tensor_map(name, tensor) for name, tensor in outputs.items()]
        self._file.add(self._graph, entry)


def _tensor_map(name: str, tensor: int) -> schema.TensorMapT:
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = name, tensor
    return entry


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        OutputError: the folder is missing, full or read-only.
    """
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}; name a folder that exists, can be written and has room"
        ) from error
