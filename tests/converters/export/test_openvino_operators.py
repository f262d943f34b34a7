"""Each operator that has no linear layer in it, run by OpenVINO alone and compared with numpy."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

ov = pytest.importorskip("openvino")

from edgescribe.converters.export.openvino_graph import OpenVinoGraph  # noqa: E402
from edgescribe.converters.quantized_weights import (  # noqa: E402
    FloatMatrix,
    QuantizedTable,
    QuantizedWeights,
    quantize_rows,
)
from edgescribe.errors import StudentError  # noqa: E402

SIZES = st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 3), st.sampled_from([1, 2, 5, 8]))
"""Batch, tokens, heads, width of a head."""
quick = settings(max_examples=12, deadline=None)


def run(
    program: Callable[[Any, Any], None],
    mask: np.ndarray,
    x: np.ndarray,
    parameters: dict[str, np.ndarray] | None = None,
    tables: dict[str, Any] | None = None,
    matrices: dict[str, Any] | None = None,
    types: np.ndarray | None = None,
    max_tokens: int = 16,
) -> dict[str, np.ndarray]:
    """Outputs of ``program(graph, x)``; ``x`` ``[B, T, W]`` comes in as rows of a table, picked by ids."""
    batch, tokens, width = x.shape
    weights = QuantizedWeights(
        "fp32", matrices or {}, {"x": x.reshape(-1, width)} | (tables or {}), parameters or {}, {}, {}
    )
    graph = OpenVinoGraph(weights, max_tokens)
    program(graph, graph.embedding(graph.token_ids(), "x"))
    compiled = ov.Core().compile_model(graph.model("test"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    feeds = {"input_ids": np.arange(batch * tokens, dtype=np.int32).reshape(batch, tokens)}
    offered = {"attention_mask": mask, "token_type_ids": types}
    names = {name for port in compiled.inputs for name in port.get_names()}
    feeds |= {name: array for name, array in offered.items() if name in names and array is not None}
    return {port.get_any_name(): array.copy() for port, array in compiled(feeds).items()}


def floats(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def masks(seed: int, batch: int, tokens: int) -> np.ndarray:
    """Random kept tokens, at least one in each row."""
    mask = np.random.default_rng(seed).integers(0, 2, (batch, tokens)).astype(np.int32)
    mask[:, seed % tokens] = 1
    return mask


def heads_of(x: np.ndarray, heads: int) -> np.ndarray:
    return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3).astype(np.float64)


def softmax(scores: np.ndarray) -> np.ndarray:
    exponentials = np.exp(scores - scores.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


@quick
@given(SIZES, st.integers(0, 9999), st.booleans(), st.booleans(), st.booleans())
def test_attention(sizes: tuple[int, ...], seed: int, with_bias: bool, one_query: bool, own_scale: bool) -> None:
    batch, tokens, heads, width = sizes
    x = floats(seed, batch, tokens, heads * width)
    mask = masks(seed, batch, tokens)
    table = floats(seed + 1, 31, heads)
    with_bias = with_bias and not one_query
    scale = 0.7 if own_scale else None

    def program(graph: Any, value: Any) -> None:
        bias = graph.relative_bias("bias", lambda offsets: offsets + 15) if with_bias else None
        query = graph.token(value, 0) if one_query else value
        graph.output("y", graph.attention(query, value, value, graph.token_mask(), heads, bias, scale))

    y = run(program, mask, x, {"bias": table})["y"]
    q = k = v = heads_of(x, heads)
    q = q[:, :, :1] if one_query else q
    scores = q @ k.transpose(0, 1, 3, 2)
    if with_bias:
        places = np.arange(tokens)
        scores = scores + table[places[None, :] - places[:, None] + 15].transpose(2, 0, 1)
    scores = scores * (width**-0.5 if scale is None else scale)
    scores = np.where(mask[:, None, None, :] == 1, scores, -np.inf)
    wanted = (softmax(scores) @ v).transpose(0, 2, 1, 3).reshape(batch, -1, heads * width)
    assert y.shape == wanted.shape
    np.testing.assert_allclose(y, wanted, atol=2e-6)


@quick
@given(SIZES, st.integers(0, 9999), st.booleans())
def test_layer_norm(sizes: tuple[int, ...], seed: int, with_residual: bool) -> None:
    batch, tokens, heads, width = sizes
    x = floats(seed, batch, tokens, heads * width) * 3
    gain, bias = floats(seed + 1, heads * width), floats(seed + 2, heads * width)

    def program(graph: Any, value: Any) -> None:
        graph.output("y", graph.layer_norm(value, "n", 1e-5, residual=value if with_residual else None))

    y = run(program, masks(seed, batch, tokens), x, {"n.weight": gain, "n.bias": bias})["y"]
    summed = x.astype(np.float64) * (2 if with_residual else 1)
    centred = summed - summed.mean(-1, keepdims=True)
    wanted = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * gain + bias
    np.testing.assert_allclose(y, wanted, atol=2e-5)


ACTIVATIONS: dict[str, Callable[[float], float]] = {
    "gelu": lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: x * 0.5 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: max(x, 0.0),
    "tanh": math.tanh,
    "silu": lambda x: x / (1 + math.exp(-x)),
}


@pytest.mark.parametrize("kind", sorted(ACTIVATIONS))
def test_activation(kind: str) -> None:
    x = np.linspace(-12, 12, 480, dtype=np.float32).reshape(1, 10, 48)
    y = run(lambda graph, value: graph.output("y", graph.activation(value, kind)), np.ones((1, 10), np.int32), x)["y"]
    np.testing.assert_allclose(y, np.vectorize(ACTIVATIONS[kind])(x.astype(np.float64)), atol=3e-6)


def test_an_unknown_activation_is_named() -> None:
    with pytest.raises(StudentError, match="swoosh"):
        run(
            lambda graph, value: graph.output("y", graph.activation(value, "swoosh")),
            np.ones((1, 2), np.int32),
            np.ones((1, 2, 4), np.float32),
        )


@quick
@given(SIZES, st.integers(0, 9999))
def test_sums_and_reading_out(sizes: tuple[int, ...], seed: int) -> None:
    batch, tokens, heads, width = sizes
    x = floats(seed, batch, tokens, heads * width)
    vector = floats(seed + 1, heads, width)
    mask = masks(seed, batch, tokens)

    def program(graph: Any, value: Any) -> None:
        graph.output("sum", graph.add(value, value))
        graph.output("shifted", graph.add_vector(value, "v"))
        graph.output("first", graph.squeeze_token(graph.token(value, 0)))
        graph.output("last", graph.token(value, -1))
        pooled = graph.mean_pool(value, graph.token_mask())
        graph.output("mean", pooled)
        graph.output("unit", graph.l2_normalize(pooled))

    y = run(program, mask, x, {"v": vector})
    mean = (x * mask[:, :, None]).sum(1, dtype=np.float64) / mask.sum(1)[:, None]
    length = np.maximum(np.sqrt((mean**2).sum(-1, keepdims=True)), 1e-12)
    np.testing.assert_array_equal(y["sum"], x + x)
    np.testing.assert_array_equal(y["shifted"], x + vector.reshape(-1))
    np.testing.assert_array_equal(y["first"], x[:, 0])
    np.testing.assert_array_equal(y["last"], x[:, -1:])
    np.testing.assert_allclose(y["mean"], mean, atol=1e-6)
    np.testing.assert_allclose(y["unit"], mean / length, atol=1e-5)


def test_a_vector_of_noughts_stays_nought_when_normalised() -> None:
    x = np.zeros((2, 3, 4), np.float32)
    y = run(lambda graph, value: graph.output("y", graph.l2_normalize(value)), np.ones((2, 3), np.int32), x)["y"]
    np.testing.assert_array_equal(y, x)


@quick
@given(SIZES, st.integers(0, 9999), st.booleans(), st.integers(0, 3))
def test_embeddings(sizes: tuple[int, ...], seed: int, quantized: bool, start: int) -> None:
    batch, tokens, _, width = sizes
    rows = floats(seed, 40, width)
    codes, scales = quantize_rows(rows)
    table: Any = QuantizedTable(codes, scales) if quantized else rows
    values = table.dequantized() if quantized else rows
    x = np.zeros((batch, tokens, 1), np.float32)

    def program(graph: Any, value: Any) -> None:
        graph.output("words", graph.embedding(graph.token_ids(), "t"))
        graph.output("places", graph.position_embedding("t", start))
        graph.output("row", graph.table_row("t", 5))

    y = run(program, masks(seed, batch, tokens), x, tables={"t": table})
    np.testing.assert_array_equal(y["words"], values[np.arange(batch * tokens)].reshape(batch, tokens, width))
    np.testing.assert_array_equal(y["places"], values[None, start : start + tokens])
    np.testing.assert_array_equal(y["row"], values[None, 5:6])


@quick
@given(SIZES, st.integers(0, 9999), st.booleans())
def test_relative_bias(sizes: tuple[int, ...], seed: int, quantized: bool) -> None:
    batch, tokens, heads, _ = sizes
    rows = floats(seed, 7, heads)
    table: Any = QuantizedTable(*quantize_rows(rows)) if quantized else rows

    def bucket_of(offsets: np.ndarray) -> np.ndarray:
        return np.clip(offsets, -3, 3) + 3

    y = run(
        lambda graph, value: graph.output("y", graph.relative_bias("t", bucket_of)),
        masks(seed, batch, tokens),
        np.zeros((batch, tokens, 1), np.float32),
        tables={"t": table},
    )["y"]
    places = np.arange(tokens)
    values = table.dequantized() if quantized else rows
    wanted = values[bucket_of(places[None, :] - places[:, None])].transpose(2, 0, 1)[None]
    np.testing.assert_array_equal(y, wanted)


@quick
@given(SIZES, st.integers(0, 9999))
def test_relative_and_segment_scores(sizes: tuple[int, ...], seed: int) -> None:
    batch, tokens, heads, width = sizes
    x = floats(seed, batch, tokens, heads * width)
    matrix = floats(seed + 1, heads * width, 6)
    segments = floats(seed + 2, 2, heads, width)
    types = np.random.default_rng(seed).integers(0, 3, (batch, tokens)).astype(np.int32)
    frequencies = np.array([1.0, 0.3, 0.01])

    def basis(offsets: np.ndarray) -> np.ndarray:
        angles = offsets[:, None] * frequencies
        return np.concatenate([np.sin(angles), np.cos(angles)], 1).astype(np.float32)

    def program(graph: Any, value: Any) -> None:
        graph.output("places", graph.relative_scores(value, "r", basis, heads))
        graph.output("segments", graph.segment_scores(value, "s", graph.token_types(), heads))

    y = run(
        program,
        masks(seed, batch, tokens),
        x,
        {"s": segments},
        matrices={"r": FloatMatrix(matrix, None)},
        types=types,
    )
    q = heads_of(x, heads)
    places = np.arange(tokens)
    keys = (basis((places[:, None] - places[None, :]).reshape(-1)) @ matrix.T).reshape(tokens, tokens, heads, width)
    np.testing.assert_allclose(y["places"], np.einsum("bhid,ijhd->bhij", q, keys), atol=2e-5)
    scores = np.einsum("bhid,shd->bhis", q, segments)
    differ = (types[:, :, None] != types[:, None, :])[:, None]
    np.testing.assert_allclose(y["segments"], np.where(differ, scores[..., 1:], scores[..., :1]), atol=2e-5)


def test_relative_scores_reach_the_longest_input() -> None:
    x = floats(3, 1, 6, 4)

    def program(graph: Any, value: Any) -> None:
        graph.output("y", graph.relative_scores(value, "r", lambda n: n[:, None].astype(np.float32), 1))
        graph.output("z", graph.relative_bias("t", lambda n: n + 5))

    table = np.arange(11, dtype=np.float32)[:, None]
    matrix = FloatMatrix(np.ones((4, 1), np.float32), None)
    y = run(program, np.ones((1, 6), np.int32), x, {"t": table}, matrices={"r": matrix}, max_tokens=6)
    offsets = np.arange(6)[:, None] - np.arange(6)[None, :]
    np.testing.assert_allclose(y["y"][0, 0], x[0].sum(-1)[:, None] * offsets, atol=1e-5)
    np.testing.assert_array_equal(y["z"][0, 0], 5.0 - offsets)


def test_a_missing_parameter_is_named() -> None:
    x, mask = np.ones((1, 2, 4), np.float32), np.ones((1, 2), np.int32)
    with pytest.raises(StudentError, match=r"no parameter 'n\.weight'"):
        run(lambda graph, value: graph.output("y", graph.layer_norm(value, "n", 1e-5)), mask, x)
    with pytest.raises(StudentError, match="no table 'words'"):
        run(lambda graph, value: graph.output("y", graph.table_row("words", 0)), mask, x)
    with pytest.raises(StudentError, match="no linear layer 'dense'"):
        run(lambda graph, value: graph.output("y", graph.linear(value, "dense", "site")), mask, x)
