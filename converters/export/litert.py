"""Writes a student as a LiteRT file, and reads back what the file holds and what the engine makes of it.

LiteRT plans its memory for fixed shapes, so a file holds the program once for each bucket of tokens, callable as
``tokens_32``, ``tokens_64`` …; :mod:`~edgescribe.converters.export.litert_flatbuffer` stores the weights once for
all of them. The program of one bucket is :class:`~edgescribe.converters.export.litert_graph.LiteRtGraph`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from ...errors import UsageError
from ..anatomy import Anatomy, Shape, Task
from ..quantized_weights import QuantizedWeights, SiteGrids
from .litert_flatbuffer import FlatbufferFile, write_atomically
from .litert_graph import LiteRtGraph
from .litert_reading import add_site, agree, operator_code, read_model, site_of, telling_of_damage, tensor_data

BUCKETS = (32, 64, 128, 256)
"""Numbers of tokens for which a file holds a signature unless others are asked for."""


@dataclass(frozen=True)
class LiteRtContents:
    """What a file holds.

    Attributes:
        matrices: integers int8 ``[out, in]`` and scales float32 ``[out]`` of each quantised linear layer, by name.
        tables: integers int8 ``[rows, width]`` and scales float32 ``[rows]`` of each quantised table, by name.
        sites: activation grids by site; empty unless the file is static.
    """

    matrices: dict[str, tuple[NDArray[np.int8], NDArray[np.float32]]]
    tables: dict[str, tuple[NDArray[np.int8], NDArray[np.float32]]]
    sites: dict[str, SiteGrids]


@dataclass(frozen=True)
class LinearKernel:
    """How the engine runs one linear layer of one signature.

    Attributes:
        signature: ``tokens_<T>``.
        site: the site it was written for.
        matrix: name of its weights.
        operands: dtypes of activations, weights and result in the engine's tensors.
        delegated: whether it is part of what XNNPACK took over, by the engine's own list of nodes.
    """

    signature: str
    site: str
    matrix: str
    operands: tuple[str, str, str]
    delegated: bool

    @property
    def kernel(self) -> str:
        """Whose kernel runs it."""
        return "XNNPACK" if self.delegated else "LiteRT"

    @property
    def precision(self) -> str:
        """Of the operands that are multiplied: ``i8`` or ``f32``."""
        return "i8" if self.is_int8 else "f32"

    @property
    def is_int8(self) -> bool:
        """Whether it multiplies 8-bit integers: int8 operands, or XNNPACK's rounding of each row while running."""
        x, weight, result = self.operands
        return weight == "int8" and ((x == "int8" and result == "int8") or (x == "float32" and self.delegated))


def export_litert(
    anatomy: Anatomy,
    shape: Shape,
    task: Task,
    weights: QuantizedWeights,
    path: Path,
    buckets: Sequence[int] = BUCKETS,
) -> None:
    """Write ``path`` (``.tflite``) whole or not at all, with a signature ``tokens_<T>`` for each bucket.

    A signature takes int32 ``[1, T]`` (``input_ids``, ``attention_mask`` of 0 and 1, and ``token_type_ids`` where the
    program reads them) and gives the program's float32 outputs. Equal arguments give equal bytes.

    Raises:
        UsageError: no buckets, one below 1, or one longer than the student's positions.
        StudentError: the program reads a weight or site that ``weights`` does not hold.
        OutputError: the folder cannot be written.
    """
    if not buckets or min(buckets) < 1:
        raise UsageError(f"buckets are {tuple(buckets)}: name one or more numbers of tokens, each at least 1")
    file = FlatbufferFile(f"{anatomy.model_type}-{task}-{weights.precision}")
    for tokens in sorted(set(buckets)):
        graph = LiteRtGraph(file, weights, tokens, max(buckets))
        anatomy.forward(graph, shape, task)
        graph.finish()
    write_atomically(path, file.to_bytes())


def read_back(path: Path) -> LiteRtContents:
    """The integers, scales and grids that a file of ``export_litert`` holds; its signatures are found to agree.

    Raises:
        BundleError: the file is not a readable .tflite, or its signatures hold different numbers.
    """
    model = read_model(path)
    with telling_of_damage(path):
        return _contents(path, model)


def _contents(path: Path, model: Any) -> LiteRtContents:
    contents = LiteRtContents({}, {}, {})
    for graph in model.subgraphs:
        named = {tensor.name.decode(): tensor for tensor in graph.tensors}
        for operator in graph.operators:
            code = operator_code(model, operator)
            tensors = [graph.tensors[index] for index in (*operator.inputs, *operator.outputs)]
            name = tensors[1 if code == schema.BuiltinOperator.FULLY_CONNECTED else 0].name.decode()
            if code == schema.BuiltinOperator.FULLY_CONNECTED and tensors[1].type == schema.TensorType.INT8:
                scales = np.asarray(tensors[1].quantization.scale, np.float32)
                agree(path, contents.matrices, name, (tensor_data(model, tensors[1]), scales))
                if tensors[0].type == schema.TensorType.INT8:
                    add_site(path, contents.sites, tensors[0], tensors[-1])
            elif f"{name}/scales" in named and tensors[0].type == schema.TensorType.INT8:
                scales = tensor_data(model, named[f"{name}/scales"]).reshape(-1)
                agree(path, contents.tables, name, (tensor_data(model, tensors[0]), scales))
    return contents


def kernel_report(path: Path) -> list[LinearKernel]:
    """How the engine on this machine runs each linear layer, after it handed over to XNNPACK what that takes.

    Raises:
        BundleError: the file is not a readable .tflite.
    """
    from ai_edge_litert.interpreter import Interpreter

    model = read_model(path)
    report = []
    for signature in model.signatureDefs:
        interpreter = Interpreter(model_content=_with_first(path, signature.subgraphIndex), num_threads=1)
        interpreter.allocate_tensors()
        nodes = interpreter._get_ops_details()
        left = set(_run_by_the_engine(nodes))
        taken = {int(tensor) for node in nodes if node["op_name"] == "DELEGATE" for tensor in node["inputs"]}
        details = {entry["index"]: entry for entry in interpreter.get_tensor_details()}
        names = [tensor.name.decode() for tensor in model.subgraphs[signature.subgraphIndex].tensors]
        for node in nodes:
            if node["op_name"] != "FULLY_CONNECTED":
                continue
            x, weight, result = int(node["inputs"][0]), int(node["inputs"][1]), int(node["outputs"][0])
            dtypes = {index: np.dtype(details[index]["dtype"]).name for index in (x, weight, result)}
            operands = (dtypes[x], dtypes[weight], dtypes[result])
            key = signature.signatureKey.decode()
            taken_over = weight in taken and "FULLY_CONNECTED" not in left
            report.append(LinearKernel(key, site_of(names[result]), names[weight], operands, taken_over))
    return report


def undelegated_operators(path: Path) -> dict[str, list[str]]:
    """By signature, names of the operators that the engine did not hand over to XNNPACK, in the order they run.

    Raises:
        BundleError: the file is not a readable .tflite.
    """
    from ai_edge_litert.interpreter import Interpreter

    found = {}
    for signature in read_model(path).signatureDefs:
        interpreter = Interpreter(model_content=_with_first(path, signature.subgraphIndex), num_threads=1)
        interpreter.allocate_tensors()
        found[signature.signatureKey.decode()] = _run_by_the_engine(interpreter._get_ops_details())
    return found


def _run_by_the_engine(nodes: list[dict[str, Any]]) -> list[str]:
    """Names of the nodes whose results are read by what is left beside the delegate's own nodes."""
    delegates = [node for node in nodes if node["op_name"] == "DELEGATE"]
    from_delegates = {int(tensor) for node in delegates for tensor in node["outputs"]}
    own = [node for node in nodes if node["op_name"] != "DELEGATE"]
    read = {int(tensor) for node in delegates for tensor in node["inputs"]}
    if not delegates:
        return [node["op_name"] for node in own]
    kept = []
    for node in reversed(own):
        results = {int(tensor) for tensor in node["outputs"]}
        if results & read and not results & from_delegates:
            kept.append(node["op_name"])
            read |= {int(tensor) for tensor in node["inputs"]}
    return kept[::-1]


def _with_first(path: Path, subgraph: int) -> bytes:
    """The file with one subgraph moved to the front, since the engine tells of the nodes of the first alone."""
    model = read_model(path)
    model.subgraphs[0], model.subgraphs[subgraph] = model.subgraphs[subgraph], model.subgraphs[0]
    places = {0: subgraph, subgraph: 0}
    for signature in model.signatureDefs:
        signature.subgraphIndex = places.get(signature.subgraphIndex, signature.subgraphIndex)
    builder = flatbuffers.Builder(path.stat().st_size + 65536)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())
