"""One tiny classifier-and-tagger, written into each runtime's file format by the formats' own tools."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

BUCKETS = (8, 16)


@dataclass(frozen=True)
class TinyModel:
    """Embedding of masked tokens, one linear layer for the row's mean and the same one for each token.

    ``weight`` is int8 ``[labels, width]`` with one scale per row; activations have one grid where they are static.
    """

    table: NDArray[np.float32]
    weight: NDArray[np.int8]
    scales: NDArray[np.float32]
    input_scale: float = 0.03
    output_scale: float = 0.04

    @classmethod
    def random(cls, vocabulary: int = 50, width: int = 32, labels: int = 5) -> TinyModel:
        draw = np.random.default_rng(7)
        table = draw.normal(size=(vocabulary, width)).astype(np.float32)
        weight = draw.integers(-127, 128, size=(labels, width)).astype(np.int8)
        scales = draw.uniform(0.001, 0.003, size=labels).astype(np.float32)
        return cls(table, weight, scales)

    @property
    def float_weight(self) -> NDArray[np.float32]:
        return self.weight.astype(np.float32) * self.scales[:, None]

    def expected(self, feeds: dict[str, NDArray[np.int32]], quantized: bool = False) -> dict[str, NDArray[np.float32]]:
        """What the model gives: ``logits`` [B, labels] and ``tags`` [B, T, labels]."""
        mask = feeds["attention_mask"].astype(np.float32)[..., None]
        tokens = self.table[feeds["input_ids"]] * mask
        mean = tokens.sum(axis=1) / mask.sum(axis=1)
        return {"logits": self._linear(mean, quantized), "tags": self._linear(tokens, quantized)}

    def _linear(self, x: NDArray[np.float32], quantized: bool) -> NDArray[np.float32]:
        if not quantized:
            return x @ self.float_weight.T
        rounded = np.clip(np.rint(x / self.input_scale), -128, 127) * np.float32(self.input_scale)
        product = (rounded @ self.float_weight.T).astype(np.float32)
        steps = np.clip(np.rint(product / self.output_scale), -128, 127)
        return (steps * np.float32(self.output_scale)).astype(np.float32)


@pytest.fixture(scope="session")
def tiny() -> TinyModel:
    return TinyModel.random()


@pytest.fixture
def feeds_for(tiny: TinyModel) -> Callable[..., dict[str, NDArray[np.int32]]]:
    """Feeds of given row lengths, padded to the longest (or to ``tokens``) on the side asked for."""

    def make(lengths: tuple[int, ...], tokens: int = 0, side: str = "right") -> dict[str, NDArray[np.int32]]:
        draw = np.random.default_rng(sum(lengths))
        tokens = tokens or max(lengths)
        ids = np.zeros((len(lengths), tokens), np.int32)
        mask = np.zeros_like(ids)
        for row, length in enumerate(lengths):
            where = slice(0, length) if side == "right" else slice(tokens - length, tokens)
            ids[row, where] = draw.integers(1, len(tiny.table), size=length)
            mask[row, where] = 1
        return {"input_ids": ids, "attention_mask": mask}

    return make


@pytest.fixture(scope="session")
def onnx_file(tiny: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    constants = {"table": tiny.table, "weight": tiny.float_weight.T.copy()}
    constants |= {"last": np.array([-1]), "one": np.array([1])}
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("Cast", ["attention_mask"], ["flat_mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["flat_mask", "last"], ["mask"]),
        helper.make_node("Mul", ["rows", "mask"], ["tokens"]),
        helper.make_node("ReduceSum", ["tokens", "one"], ["sum"], keepdims=0),
        helper.make_node("ReduceSum", ["mask", "one"], ["count"], keepdims=0),
        helper.make_node("Div", ["sum", "count"], ["mean"]),
        helper.make_node("MatMul", ["mean", "weight"], ["logits"]),
        helper.make_node("MatMul", ["tokens", "weight"], ["tags"]),
    ]
    labels = len(tiny.weight)
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(n, TensorProto.INT32, ["B", "T"]) for n in ("input_ids", "attention_mask")],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["B", labels]),
            helper.make_tensor_value_info("tags", TensorProto.FLOAT, ["B", "T", labels]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path_factory.mktemp("onnx") / "tiny.onnx"
    onnx.save(model, path)
    return path


@pytest.fixture(scope="session")
def openvino_file(tiny: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import openvino as ov
    from openvino import opset15 as op

    ids = op.parameter([-1, -1], np.int32, name="input_ids")
    flat_mask = op.parameter([-1, -1], np.int32, name="attention_mask")
    for parameter in (ids, flat_mask):
        parameter.output(0).set_names({parameter.get_friendly_name()})
    mask = op.unsqueeze(op.convert(flat_mask, np.float32), np.int64(2))
    tokens = op.multiply(op.gather(op.constant(tiny.table), ids, np.int64(0)), mask)
    mean = op.divide(op.reduce_sum(tokens, np.int64([1])), op.reduce_sum(mask, np.int64([1])))
    weight = op.constant(tiny.float_weight)
    results = []
    for name, x in (("logits", mean), ("tags", tokens)):
        result = op.matmul(x, weight, False, True)
        result.output(0).set_names({name})
        results.append(result)
    path = tmp_path_factory.mktemp("openvino") / "tiny.xml"
    ov.save_model(ov.Model(results, [ids, flat_mask], "tiny"), path, compress_to_fp16=False)
    return path


WriteTflite = Callable[..., Path]


@pytest.fixture(scope="session")
def write_tflite(tiny: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> WriteTflite:
    """Writes the model with one signature per bucket; ``kind``: float, static, dynamic (hybrid) or int4 (blockwise)."""

    @functools.cache
    def write(kind: str = "static", buckets: tuple[int, ...] = BUCKETS) -> Path:
        path = tmp_path_factory.mktemp("litert") / f"{kind}.tflite"
        path.write_bytes(_Flatbuffer(tiny, kind).model(buckets))
        return path

    return write


class _Flatbuffer:
    """The .tflite by the schema's own object API."""

    def __init__(self, tiny: TinyModel, kind: str) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self.s: Any = schema
        self.tiny, self.kind = tiny, kind
        self.buffers: list[Any] = [schema.BufferT()]
        self.codes: list[Any] = []
        self.constants: dict[str, int] = {}

    def model(self, buckets: tuple[int, ...]) -> bytes:
        import flatbuffers

        model = self.s.ModelT()
        model.version = 3
        model.description = b"tiny"
        model.subgraphs, model.signatureDefs = [], []
        for index, tokens in enumerate(buckets):
            graph, signature = self._subgraph(tokens, index)
            model.subgraphs.append(graph)
            model.signatureDefs.append(signature)
        model.buffers, model.operatorCodes = self.buffers, self.codes
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    def _subgraph(self, tokens: int, index: int) -> tuple[Any, Any]:
        s, tiny = self.s, self.tiny
        graph = s.SubGraphT()
        graph.name = f"tokens_{tokens}".encode()
        graph.tensors, graph.operators = [], []
        self.graph = graph
        labels, width = tiny.weight.shape
        kinds = s.TensorType
        ids = self._tensor("input_ids", (1, tokens), kinds.INT32)
        flat = self._tensor("attention_mask", (1, tokens), kinds.INT32)
        table = self._constant("table", tiny.table, kinds.FLOAT32)
        rows = self._op("GATHER", [table, ids], (1, tokens, width), "Gather")
        cast = s.CastOptionsT()
        cast.inDataType, cast.outDataType = kinds.INT32, kinds.FLOAT32
        float_mask = self._op("CAST", [flat], (1, tokens), cast)
        shape = self._constant(f"mask_shape_{tokens}", np.array([1, tokens, 1], np.int32), kinds.INT32)
        mask = self._op("RESHAPE", [float_mask, shape], (1, tokens, 1), "Reshape")
        masked = self._op("MUL", [rows, mask], (1, tokens, width), "Mul")
        axis = self._constant("axis", np.array([1], np.int32), kinds.INT32)
        total = self._op("SUM", [masked, axis], (1, width), "Reducer")
        count = self._op("SUM", [mask, axis], (1, 1), "Reducer")
        mean = self._op("DIV", [total, count], (1, width), "Div")
        logits = self._linear(mean, (1, labels))
        tags = self._linear(masked, (1, tokens, labels))
        graph.inputs, graph.outputs = [ids, flat], [logits, tags]
        signature = s.SignatureDefT()
        signature.signatureKey = f"tokens_{tokens}".encode()
        signature.subgraphIndex = index
        signature.inputs = [self._entry("input_ids", ids), self._entry("attention_mask", flat)]
        signature.outputs = [self._entry("logits", logits), self._entry("tags", tags)]
        return graph, signature

    def _linear(self, x: int, shape: tuple[int, ...]) -> int:
        s, tiny, kinds = self.s, self.tiny, self.s.TensorType
        options = s.FullyConnectedOptionsT()
        options.keepNumDims = True
        if self.kind == "float":
            weight = self._constant("weight", tiny.float_weight, kinds.FLOAT32)
            return self._op("FULLY_CONNECTED", [x, weight, -1], shape, options)
        if self.kind == "int4":
            return self._op("FULLY_CONNECTED", [x, self._blockwise_weight(), -1], shape, options)
        weight = self._constant("weight", tiny.weight, kinds.INT8)
        self.graph.tensors[weight].quantization = self._grid(tiny.scales)
        if self.kind == "dynamic":
            return self._op("FULLY_CONNECTED", [x, weight, -1], shape, options)
        x_shape = tuple(self.graph.tensors[x].shape)
        quantized = self._op("QUANTIZE", [x], x_shape, "Quantize", kinds.INT8)
        self.graph.tensors[quantized].quantization = self._grid([tiny.input_scale])
        product = self._op("FULLY_CONNECTED", [quantized, weight, -1], shape, options, kinds.INT8)
        self.graph.tensors[product].quantization = self._grid([tiny.output_scale])
        return self._op("DEQUANTIZE", [product], shape, "Dequantize")

    def _blockwise_weight(self) -> int:
        s, kinds = self.s, self.s.TensorType
        labels, width = self.tiny.weight.shape
        integers = (self.tiny.weight // 16).astype(np.uint8) & 15
        packed = (integers[:, 0::2] | (integers[:, 1::2] << 4)).astype(np.uint8)
        scales = np.full((labels, width // 32), 0.015625, np.float16)
        scale_tensor = self._constant("block_scales", scales, kinds.FLOAT16)
        weight = self._constant("weight4", packed, kinds.INT4)
        self.graph.tensors[weight].shape = [labels, width]
        details = s.BlockwiseQuantizationT()
        details.scales, details.zeroPoints, details.blockSize = scale_tensor, -1, 32
        grid = s.QuantizationParametersT()
        grid.detailsType, grid.details = s.QuantizationDetails.BlockwiseQuantization, details
        self.graph.tensors[weight].quantization = grid
        return weight

    def _grid(self, scales: Any) -> Any:
        grid = self.s.QuantizationParametersT()
        grid.scale = [float(x) for x in scales]
        grid.zeroPoint = [0] * len(grid.scale)
        return grid

    def _entry(self, name: str, tensor: int) -> Any:
        entry = self.s.TensorMapT()
        entry.name, entry.tensorIndex = name.encode(), tensor
        return entry

    def _tensor(self, name: str, shape: tuple[int, ...], kind: int, buffer: int = 0) -> int:
        tensor = self.s.TensorT()
        tensor.name, tensor.shape, tensor.type, tensor.buffer = name.encode(), list(shape), kind, buffer
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def _constant(self, name: str, value: NDArray[Any], kind: int) -> int:
        if name not in self.constants:
            buffer = self.s.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(value).tobytes(), np.uint8)
            self.buffers.append(buffer)
            self.constants[name] = len(self.buffers) - 1
        return self._tensor(name, value.shape, kind, self.constants[name])

    def _op(self, code: str, inputs: list[int], shape: tuple[int, ...], options: Any, kind: int = 0) -> int:
        s = self.s
        number = getattr(s.BuiltinOperator, code)
        known = [c.builtinCode for c in self.codes]
        if number not in known:
            entry = s.OperatorCodeT()
            entry.builtinCode, entry.deprecatedBuiltinCode, entry.version = number, min(number, 127), 1
            self.codes.append(entry)
            known.append(number)
        if isinstance(options, str):
            options = getattr(s, f"{options}OptionsT")()
        operator = s.OperatorT()
        output = self._tensor(f"{code.lower()}_{len(self.graph.tensors)}", shape, kind)
        operator.opcodeIndex, operator.inputs, operator.outputs = known.index(number), inputs, [output]
        operator.builtinOptions = options
        operator.builtinOptionsType = getattr(s.BuiltinOptions, type(options).__name__.removesuffix("T"))
        self.graph.operators.append(operator)
        return output
