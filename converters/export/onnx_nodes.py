"""Nodes and constants of an ONNX graph while it is being written by hand: names, sharing, shapes known while running.

Nothing here knows layers or quantisation; see :mod:`.onnx_graph`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ...errors import StudentError

CONTRIB = "com.microsoft"
"""ONNX Runtime's own operators; those used here have CPU kernels on x86-64 and aarch64 alike."""

OPSET, CONTRIB_OPSET, IR_VERSION = 23, 1, 11
"""Operator sets: 23 brought Attention; ONNX Runtime has kernels for all of it from 1.24 on."""


class NodeWriter:
    """Collects nodes, constants (each stored once) and outputs, and gives the finished model."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}
        self._by_content: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._count = 0

    def node(
        self, operator: str, inputs: list[str], *, domain: str = "", name: str = "", **attributes: Any
    ) -> str:
        """Append a node of one result; the result's name."""
        return self.node_of(operator, inputs, 1, domain=domain, name=name, **attributes)[0]

    def node_of(
        self, operator: str, inputs: list[str], results: int, *, domain: str = "", name: str = "", **attributes: Any
    ) -> list[str]:
        """Append a node of several results; their names."""
        own = f"{operator}_{self._count}"
        self._count += 1
        names = [own] if results == 1 else [f"{own}_{index}" for index in range(results)]
        self.nodes.append(helper.make_node(operator, inputs, names, name=name or own, domain=domain, **attributes))
        return names

    def stored(self, name: str, array: NDArray[Any] | np.generic) -> str:
        """A constant under a name of its own, which a reader of the file can look up. Stored once for each name."""
        if name not in self._constants:
            self._constants[name] = numpy_helper.from_array(np.asarray(array, order="C"), name)
        return name

    def constant(self, array: NDArray[Any] | np.generic) -> str:
        """A constant of no name worth knowing; equal ones are stored once."""
        array = np.asarray(array)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._by_content:
            self._by_content[key] = self.stored(f"constant_{len(self._by_content)}", array)
        return self._by_content[key]

    def integers(self, *values: int) -> str:
        """A constant int64 vector."""
        return self.constant(np.array(values, np.int64))

    def declare_output(self, name: str, value: str, shape: list[str | int]) -> None:
        """Make ``value`` the float32 output ``name``; a second output of the same value is a copy.

        Raises:
            StudentError: an output of this name exists.
        """
        if any(output.name == name for output in self.outputs):
            raise StudentError(f"the forward pass declares the output {name!r} twice; each output needs its own name")
        if any(output.name == value for output in self.outputs) or value in self._constants:
            value = self.node("Identity", [value])
        for node in self.nodes:
            for names in (node.input, node.output):
                for index, found in enumerate(names):
                    if found == value:
                        names[index] = name
        self.outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))

    def model(self, inputs: list[str], properties: dict[str, str]) -> onnx.ModelProto:
        """The model: int32 ``inputs`` ``[batch, tokens]``, and only the constants that a node reads."""
        read = {name for node in self.nodes for name in node.input}
        graph = helper.make_graph(
            self.nodes,
            "edgescribe",
            [helper.make_tensor_value_info(name, TensorProto.INT32, ["batch", "tokens"]) for name in inputs],
            self.outputs,
            [tensor for name, tensor in self._constants.items() if name in read],
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, CONTRIB_OPSET)],
            ir_version=IR_VERSION,
            producer_name="edgescribe",
        )
        helper.set_model_props(model, properties)
        return model
