"""Every operator of the ONNX graph but linear layers, alone, against numpy or torch on random shapes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as functional
from edgescribe.converters.export.onnx import write_model
from edgescribe.converters.export.onnx_graph import OnnxGraph
from edgescribe.converters.quantized_weights import FloatMatrix, QuantizedTable, QuantizedWeights, quantize_rows
from edgescribe.errors import StudentError
from hypothesis import given, settings
from hypothesis import strategies as st

ROWS, POSITIONS = 23, 12
alone = settings(max_examples=12, deadline=None)
sizes = {"batch": st.integers(1, 3), "tokens": st.integers(1, POSITIONS), "seed": st.integers(0, 2**31)}


class Bench:
    """Random weights and feeds of one shape, and a program run on them in ONNX Runtime."""

    def __init__(self, seed: int, batch: int, tokens: int, heads: int = 3, width: int = 5) -> None:
        self.random = np.random.default_rng(seed)
        self.heads, self.width = heads, heads * width
        self.ids = self.random.integers(0, ROWS, (batch, tokens)).astype(np.int32)
        self.mask = np.ones((batch, tokens), np.int32)
        for row in self.mask[1:]:
            row[self.random.integers(1, tokens + 1) :] = 0
        self.types = self.random.integers(0, 2, (batch, tokens)).astype(np.int32)
        self.tables = {name: self.floats(ROWS, self.width) for name in ("a", "b", "c")}
        self.vectors = {
            "norm.weight": self.floats(self.width),
            "norm.bias": self.floats(self.width),
            "vector": self.floats(heads, width),
            "buckets": self.floats(7, heads),
            "segments": self.floats(2, heads, width),
        }
        self.matrices = {"r": FloatMatrix(self.floats(self.width, 6), None)}

    def floats(self, *shape: int) -> np.ndarray:
        return self.random.standard_normal(shape).astype(np.float32)

    def looked_up(self, table: str) -> np.ndarray:
        return self.tables[table][self.ids]

    def run(self, program: Callable[[OnnxGraph], None], tables: dict[str, QuantizedTable] | None = None) -> np.ndarray:
        weights = QuantizedWeights("fp32", self.matrices, tables or self.tables, self.vectors, {}, {})
        graph = OnnxGraph(weights, POSITIONS)
        program(graph)
        feeds = {"input_ids": self.ids, "attention_mask": self.mask, "token_type_ids": self.types}
        with TemporaryDirectory() as folder:
            path = Path(folder, "program.onnx")
            write_model(graph, path)
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads, options.log_severity_level = 1, 3
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            names = [given.name for given in session.get_inputs()]
            return session.run(["y"], {name: feeds[name] for name in names})[0]


def split(x: np.ndarray, heads: int) -> torch.Tensor:
    """``[B, T, H * D]`` → ``[B, H, T, D]``."""
    return torch.from_numpy(x).unflatten(-1, (heads, -1)).transpose(1, 2)


@alone
@given(**sizes)
def test_embedding_of_float_and_int8_tables(batch: int, tokens: int, seed: int) -> None:
    bench = Bench(seed, batch, tokens)

    def program(graph: OnnxGraph) -> None:
        graph.output("y", graph.embedding(graph.token_ids(), "a"))

    np.testing.assert_array_equal(bench.run(program), bench.looked_up("a"))
    table = QuantizedTable(*quantize_rows(bench.tables["a"]))
    np.testing.assert_array_equal(bench.run(program, {"a": table}), table.dequantized()[bench.ids])


@alone
@given(start=st.integers(0, 4), **sizes)
def test_positions_and_a_row_join_an_embedding(batch: int, tokens: int, seed: int, start: int) -> None:
    bench = Bench(seed, batch, tokens)

    def program(graph: OnnxGraph) -> None:
        places = graph.add(graph.position_embedding("b", start), graph.table_row("c", 2))
        graph.output("y", graph.add(graph.embedding(graph.token_ids(), "a"), places))

    def expected(tables: dict[str, np.ndarray]) -> np.ndarray:
        return tables["a"][bench.ids] + tables["b"][start : start + tokens] + tables["c"][2]

    np.testing.assert_allclose(bench.run(program), expected(bench.tables), atol=1e-6)
    stored = {name: QuantizedTable(*quantize_rows(table)) for name, table in bench.tables.items()}
    rounded = {name: table.dequantized() for name, table in stored.items()}
    np.testing.assert_allclose(bench.run(program, stored), expected(rounded), atol=1e-6)


@alone
@given(**sizes)
def test_layer_norm_with_and_without_residual(batch: int, tokens: int, seed: int) -> None:
    bench = Bench(seed, batch, tokens)
    gain, bias = (torch.from_numpy(bench.vectors[f"norm.{part}"]) for part in ("weight", "bias"))
    for residual in (False, True):

        def program(graph: OnnxGraph, residual: bool = residual) -> None:
            x = graph.embedding(graph.token_ids(), "a")
            other = graph.embedding(graph.token_ids(), "b") if residual else None
            graph.output("y", graph.layer_norm(x, "norm", 1e-5, other))

        x = torch.from_numpy(bench.looked_up("a") + (bench.looked_up("b") if residual else 0))
        expected = functional.layer_norm(x, (bench.width,), gain, bias, 1e-5)
        np.testing.assert_allclose(bench.run(program), expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("kind", ["gelu", "gelu_tanh", "relu", "tanh", "silu"])
def test_activation(kind: str) -> None:
    bench = Bench(3, 2, 9)
    bench.tables["a"] *= 4
    of_torch = {
        "gelu": functional.gelu,
        "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
        "relu": functional.relu,
        "tanh": torch.tanh,
        "silu": functional.silu,
    }
    got = bench.run(lambda graph: graph.output("y", graph.activation(graph.embedding(graph.token_ids(), "a"), kind)))
    expected = of_torch[kind](torch.from_numpy(bench.looked_up("a"))).numpy()
    np.testing.assert_allclose(got, expected, atol=1e-5)


@alone
@given(**sizes)
def test_add_vector_and_reading_one_token(batch: int, tokens: int, seed: int) -> None:
    bench = Bench(seed, batch, tokens)
    for index in (0, -1):

        def program(graph: OnnxGraph, index: int = index) -> None:
            x = graph.add_vector(graph.embedding(graph.token_ids(), "a"), "vector")
            graph.output("y", graph.squeeze_token(graph.token(x, index)))

        expected = bench.looked_up("a")[:, index] + bench.vectors["vector"].reshape(-1)
        np.testing.assert_allclose(bench.run(program), expected, atol=1e-6)


@alone
@given(**sizes)
def test_mean_pool_and_length_one(batch: int, tokens: int, seed: int) -> None:
    bench = Bench(seed, batch, tokens)

    def program(graph: OnnxGraph) -> None:
        pooled = graph.mean_pool(graph.embedding(graph.token_ids(), "a"), graph.token_mask())
        graph.output("y", graph.l2_normalize(pooled))

    kept = bench.mask[:, :, None]
    mean = (bench.looked_up("a") * kept).sum(1) / kept.sum(1)
    expected = mean / np.maximum(np.linalg.norm(mean, axis=-1, keepdims=True), 1e-12)
    np.testing.assert_allclose(bench.run(program), expected, atol=1e-6)


def test_a_vector_of_zeros_stays_zero_when_normalised() -> None:
    bench = Bench(0, 2, 3)
    bench.tables["a"][:] = 0

    def program(graph: OnnxGraph) -> None:
        x = graph.squeeze_token(graph.token(graph.embedding(graph.token_ids(), "a"), 0))
        graph.output("y", graph.l2_normalize(x))

    np.testing.assert_array_equal(bench.run(program), np.zeros((2, bench.width), np.float32))


@alone
@given(first=st.booleans(), biased=st.booleans(), scale=st.sampled_from([None, 1.0, 0.3]), **sizes)
def test_attention(batch: int, tokens: int, seed: int, first: bool, biased: bool, scale: float | None) -> None:
    bench = Bench(seed, batch, tokens)
    first = first and not biased  # biases are those of whole layers

    def bucket_of(offsets: np.ndarray) -> np.ndarray:
        return np.clip(offsets + 3, 0, 6)

    def program(graph: OnnxGraph) -> None:
        query, key, value = (graph.embedding(graph.token_ids(), table) for table in "abc")
        bias = graph.relative_bias("buckets", bucket_of) if biased else None
        if first:
            query = graph.token(query, 0)
        context = graph.attention(query, key, value, graph.token_mask(), bench.heads, bias, scale)
        graph.output("y", graph.squeeze_token(context) if first else context)

    q, k, v = (split(bench.looked_up(table), bench.heads) for table in "abc")
    if first:
        q = q[:, :, :1]
    places = np.arange(tokens)
    offsets = places[None, :] - places[:, None]
    bias = torch.from_numpy(bench.vectors["buckets"][bucket_of(offsets)]).permute(2, 0, 1) if biased else 0
    scores = (q @ k.transpose(-1, -2) + bias) * (5**-0.5 if scale is None else scale)
    scores = scores.masked_fill(torch.from_numpy(bench.mask == 0)[:, None, None], -1e4)
    expected = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2).numpy()
    np.testing.assert_allclose(bench.run(program), expected[:, 0] if first else expected, atol=1e-5)


def test_padding_is_not_attended_to() -> None:
    short, long = Bench(5, 1, 6), Bench(5, 1, 11)
    long.tables, long.vectors = short.tables, short.vectors
    long.ids[:, :6], long.mask[:, 6:] = short.ids, 0

    def program(graph: OnnxGraph) -> None:
        parts = [graph.embedding(graph.token_ids(), table) for table in "abc"]
        graph.output("y", graph.attention(*parts, graph.token_mask(), 3))

    np.testing.assert_allclose(long.run(program)[:, :6], short.run(program), atol=1e-6)


@alone
@given(**sizes)
def test_scores_by_offset_and_segment_bias_attention(batch: int, tokens: int, seed: int) -> None:
    bench = Bench(seed, batch, tokens)

    def basis(offsets: np.ndarray) -> np.ndarray:
        return np.stack([np.sin(offsets * rate + shift) for rate in (0.1, 0.7, 1.9) for shift in (0, 1)], -1)

    def program(graph: OnnxGraph) -> None:
        query, key, value = (graph.embedding(graph.token_ids(), table) for table in "abc")
        by_offset = graph.relative_scores(query, "r", basis, bench.heads)
        by_segment = graph.segment_scores(query, "segments", graph.token_types(), bench.heads)
        bias = graph.add(by_offset, by_segment)
        graph.output("y", graph.attention(query, key, value, graph.token_mask(), bench.heads, bias))

    q, k, v = (split(bench.looked_up(table), bench.heads) for table in "abc")
    places = np.arange(tokens)
    keys = basis(places[:, None] - places[None, :]).astype(np.float32) @ bench.matrices["r"].weight.T
    by_offset = torch.einsum("bhid,ijhd->bhij", q, torch.from_numpy(keys).unflatten(-1, (bench.heads, -1)))
    both = torch.einsum("bhid,shd->bhis", q, torch.from_numpy(bench.vectors["segments"]))
    differ = torch.from_numpy(bench.types[:, :, None] != bench.types[:, None, :])[:, None]
    by_segment = torch.where(differ, both[..., 1:], both[..., :1])
    scores = (q @ k.transpose(-1, -2) + by_offset + by_segment) * 5**-0.5
    scores = scores.masked_fill(torch.from_numpy(bench.mask == 0)[:, None, None], -1e4)
    expected = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2).numpy()
    np.testing.assert_allclose(bench.run(program), expected, atol=2e-5)


@pytest.mark.parametrize(
    "program",
    [
        lambda graph: graph.embedding(graph.token_ids(), "nowhere"),
        lambda graph: graph.linear(graph.embedding(graph.token_ids(), "a"), "nowhere", "site"),
        lambda graph: graph.add_vector(graph.embedding(graph.token_ids(), "a"), "nowhere"),
    ],
)
def test_a_wrong_name_is_said(program: Callable[[OnnxGraph], object]) -> None:
    with pytest.raises(StudentError, match="nowhere"):
        Bench(0, 1, 2).run(lambda graph: (program(graph), None)[1])


def test_an_output_declared_twice_is_refused() -> None:
    def program(graph: OnnxGraph) -> None:
        x = graph.embedding(graph.token_ids(), "a")
        graph.output("y", x)
        graph.output("y", x)

    with pytest.raises(StudentError, match="'y' twice"):
        Bench(0, 1, 2).run(program)
