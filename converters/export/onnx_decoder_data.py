"""ONNX graphs whose large constants lie in a file beside them, where ONNX Runtime maps them into memory."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ...errors import OutputError, StudentError
from .onnx_nodes import CONTRIB, CONTRIB_OPSET, IR_VERSION, OPSET, NodeWriter

INLINE_BYTES = 4096
"""Constants up to this size stay in the graph's own file."""

ALIGNMENT = 64
"""Larger constants begin at a multiple of this many bytes: a cache line."""


class ExternalNodeWriter(NodeWriter):
    """Collects nodes as its base does, declares inputs and outputs of any kind, and writes both files.

    Args:
        beside: another graph that will lie beside this one, sharing its large constants by name.
    """

    def __init__(self, beside: ExternalNodeWriter | None = None) -> None:
        super().__init__()
        self._inputs: list[onnx.ValueInfoProto] = []
        self._large: dict[str, NDArray[Any]] = {} if beside is None else beside._large

    def declare_input(self, name: str, kind: int, shape: list[str | int]) -> None:
        """An input of the graph; ``kind`` is one of ``TensorProto``'s."""
        self._inputs.append(helper.make_tensor_value_info(name, kind, shape))

    def declare_named_output(self, name: str, kind: int, shape: list[str | int]) -> None:
        """An output that a node gives under this very name."""
        self.outputs.append(helper.make_tensor_value_info(name, kind, shape))

    def node_giving(
        self, operator: str, inputs: list[str], results: list[str], *, domain: str, name: str, **attributes: Any
    ) -> None:
        """Append a node whose results have names of the caller's choice; an empty name leaves one out."""
        self.nodes.append(helper.make_node(operator, inputs, results, name=name, domain=domain, **attributes))

    def node_keeping(
        self, operator: str, inputs: list[str], kept: tuple[bool, ...], *, domain: str = "", **attributes: Any
    ) -> list[str]:
        """Append a node and name those of its results that are ``kept``; the others are empty."""
        names = self.node_of(operator, inputs, len(kept), domain=domain, **attributes)
        chosen = [each if keep else "" for each, keep in zip(names, kept, strict=True)]
        self.nodes[-1].output[:] = chosen
        return chosen

    def stored(self, name: str, array: NDArray[Any] | np.generic) -> str:
        """See NodeWriter; large ones are not copied into the graph."""
        array = np.asarray(array, order="C")
        if array.nbytes <= INLINE_BYTES:
            return super().stored(name, array)
        self._large.setdefault(name, array)
        return name

    def write(self, path: Path, properties: dict[str, str]) -> None:
        """Write the graph as ``path`` and its large constants as ``<path>.data``; see :func:`write_graphs`."""
        write_graphs(path, {path.name: (self, properties)})

    def large_constants(self) -> dict[str, NDArray[Any]]:
        """Those large constants, by name, that a node of this graph reads."""
        read = {name for node in self.nodes for name in node.input}
        return {name: array for name, array in self._large.items() if name in read}

    def external_model(self, places: Mapping[str, onnx.TensorProto], properties: dict[str, str]) -> onnx.ModelProto:
        """The model; ``places`` tells by name where each large constant lies."""
        read = {name for node in self.nodes for name in node.input}
        small = [tensor for name, tensor in self._constants.items() if name in read]
        large = [places[name] for name in self.large_constants()]
        graph = helper.make_graph(self.nodes, "edgescribe", self._inputs, self.outputs, small + large)
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, CONTRIB_OPSET)],
            ir_version=IR_VERSION,
            producer_name="edgescribe",
        )
        helper.set_model_props(model, properties)
        return model


def write_graphs(path: Path, graphs: Mapping[str, tuple[ExternalNodeWriter, dict[str, str]]]) -> None:
    """Write graphs, each with its properties, into ``path``'s folder by name, and large constants as ``<path>.data``.

    All files whole or none; a constant that several graphs read is stored once. Equal graphs give equal bytes.

    Raises:
        OutputError: the folder cannot be written.
        StudentError: a program gave no output.
    """
    if not all(writer.outputs for writer, _ in graphs.values()):
        raise StudentError("the forward pass declares no output, so there is nothing to export")
    large = {name: array for writer, _ in graphs.values() for name, array in writer.large_constants().items()}
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.stem}-", dir=path.parent) as folder:
            data = Path(folder, f"{path.name}.data")
            with data.open("wb") as file:
                places = {name: _append(file, name, array, data.name) for name, array in large.items()}
                _flush(file)
            for name, (writer, properties) in graphs.items():
                with Path(folder, name).open("wb") as file:
                    file.write(writer.external_model(places, properties).SerializeToString(deterministic=True))
                    _flush(file)
            data.replace(path.with_name(data.name))
            for name in sorted(graphs, key=path.name.__eq__):
                Path(folder, name).replace(path.with_name(name))
    except OSError as error:
        raise OutputError(f"cannot write {str(path)!r}: {error}; choose a folder that can be written") from error


def _append(file: BinaryIO, name: str, array: NDArray[Any], location: str) -> onnx.TensorProto:
    """Write an array at the file's end; the constant that says where it lies."""
    file.write(b"\0" * (-file.tell() % ALIGNMENT))
    tensor = TensorProto(name=name, dims=array.shape, data_location=TensorProto.EXTERNAL)
    tensor.data_type = helper.np_dtype_to_tensor_dtype(array.dtype)
    entries = {"location": location, "offset": str(file.tell()), "length": str(array.nbytes)}
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    array.tofile(file)
    return tensor


def constant_arrays(model: onnx.ModelProto, folder: Path) -> dict[str, NDArray[Any]]:
    """Every constant of a model by name, those of its data file mapped, not read."""
    found: dict[str, NDArray[Any]] = {}
    for tensor in model.graph.initializer:
        if tensor.data_location != TensorProto.EXTERNAL:
            found[tensor.name] = numpy_helper.to_array(tensor)
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        shape = tuple(tensor.dims)
        path = folder / entries["location"]
        found[tensor.name] = np.memmap(path, dtype, "r", int(entries["offset"]), shape)
    return found


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
