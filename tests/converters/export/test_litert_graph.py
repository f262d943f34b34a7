"""Each operator of the LiteRT graph alone, run by LiteRT, against numpy."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from edgescribe.converters.export.litert_flatbuffer import FlatbufferFile
from edgescribe.converters.export.litert_graph import LiteRtGraph, Value
from edgescribe.converters.quantized_weights import (
    FloatMatrix,
    Grid,
    QuantizedMatrix,
    QuantizedTable,
    QuantizedWeights,
    SiteGrids,
    quantize_rows,
)
from edgescribe.errors import StudentError, UsageError
from hypothesis import given, settings
from hypothesis import strategies as st

Array = np.ndarray
Program = Callable[[LiteRtGraph], dict[str, Value]]

sizes = st.integers(1, 9)
seeds = st.integers(0, 2**32 - 1)
several = settings(max_examples=15, deadline=None)


def weights_of(precision: str = "fp32", **parts: Any) -> QuantizedWeights:
    held: dict[str, Any] = {"matrices": {}, "tables": {}, "vectors": {}, "sites": {}, "config": {}, **parts}
    return QuantizedWeights(precision, **held)


def built(weights: QuantizedWeights, tokens: int, program: Program, longest: int | None = None) -> bytes:
    file = FlatbufferFile("test")
    graph = LiteRtGraph(file, weights, tokens, longest)
    for name, value in program(graph).items():
        graph.output(name, value)
    graph.finish()
    return file.to_bytes()


def run(
    weights: QuantizedWeights, tokens: int, program: Program, longest: int | None = None, **feeds: Array
) -> dict[str, Array]:
    runner = Interpreter(model_content=built(weights, tokens, program, longest), num_threads=1).get_signature_runner()
    return dict(runner(**{name: array.astype(np.int32) for name, array in feeds.items()}))


def run_on(
    program: Callable[[LiteRtGraph, Value], Value], x: Array, weights: QuantizedWeights | None = None, **feeds: Array
) -> Array:
    """Feed ``x`` ``[T, W]`` float32 to a program: the rows of a table, looked up one after the other."""
    weights = weights or weights_of()
    held = {name: getattr(weights, name) for name in ("matrices", "vectors", "sites", "config")}
    with_x = QuantizedWeights(weights.precision, tables={**weights.tables, "x": x}, **held)
    result = run(
        with_x,
        len(x),
        lambda g: {"y": program(g, g.embedding(g.token_ids(), "x"))},
        input_ids=np.arange(len(x))[None],
        **feeds,
    )
    return result["y"]


def operators_of(data: bytes) -> list[str]:
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))
    names = {code: name for name, code in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
    codes = [entry.builtinCode for entry in model.operatorCodes]
    return [names[codes[operator.opcodeIndex]] for operator in model.subgraphs[0].operators]


def normal(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@several
@given(seeds, sizes, sizes)
def test_embedding_gives_rows_in_float_and_as_integers_with_scales(seed: int, tokens: int, width: int) -> None:
    table = normal(seed, 11, width)
    quantized = QuantizedTable(*quantize_rows(table))
    ids = np.random.default_rng(seed).integers(0, 11, (1, tokens))

    def program(g: LiteRtGraph) -> dict[str, Value]:
        return {"f": g.embedding(g.token_ids(), "floats"), "i": g.embedding(g.token_ids(), "integers")}

    result = run(weights_of(tables={"floats": table, "integers": quantized}), tokens, program, input_ids=ids)
    np.testing.assert_array_equal(result["f"], table[ids])
    np.testing.assert_array_equal(result["i"], quantized.dequantized()[ids])


@several
@given(seeds, sizes, st.integers(0, 3), st.booleans())
def test_position_embedding_and_table_row(seed: int, tokens: int, start: int, quantized: bool) -> None:
    table = normal(seed, 12, 5)
    held = QuantizedTable(*quantize_rows(table)) if quantized else table
    want = held.dequantized() if isinstance(held, QuantizedTable) else held

    def program(g: LiteRtGraph) -> dict[str, Value]:
        ids = g.embedding(g.token_ids(), "zeros")
        return {"p": g.add(g.position_embedding("t", start), ids), "r": g.add(g.table_row("t", start), ids)}

    tables = {"t": held, "zeros": np.zeros((1, 5), np.float32)}
    result = run(weights_of(tables=tables), tokens, program, input_ids=np.zeros((1, tokens)))
    np.testing.assert_array_equal(result["p"], want[None, start : start + tokens])
    np.testing.assert_array_equal(result["r"], np.repeat(want[None, start : start + 1], tokens, 1))


def test_more_tokens_than_positions_names_the_table() -> None:
    weights = weights_of(tables={"places": normal(0, 4, 3)})
    with pytest.raises(UsageError, match=r"5 tokens.*'places'.*has 4"):
        built(weights, 5, lambda g: {"y": g.position_embedding("places")})


@several
@given(seeds, sizes, sizes, sizes, st.sampled_from(["gelu", "gelu_tanh", "relu", "tanh", "silu", None]), st.booleans())
def test_float_linear(seed: int, tokens: int, inner: int, outer: int, kind: Any, with_bias: bool) -> None:
    x, weight, bias = normal(seed, tokens, inner), normal(seed + 1, outer, inner), normal(seed + 2, outer)
    weights = weights_of(matrices={"w": FloatMatrix(weight, bias if with_bias else None)})
    got = run_on(lambda g, v: g.linear(v, "w", "s", kind), x, weights)
    want = activated((x @ weight.T + (bias if with_bias else 0)).astype(np.float64), kind)
    np.testing.assert_allclose(got[0], want, atol=1e-5, rtol=1e-5)


def activated(y: Array, kind: str | None) -> Array:
    if kind == "gelu":
        return y * 0.5 * (1 + np.vectorize(math.erf, otypes=[float])(y / math.sqrt(2)))
    if kind == "gelu_tanh":
        return 0.5 * y * (1 + np.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
    if kind == "relu":
        return np.maximum(y, 0)
    if kind == "tanh":
        return np.tanh(y)
    return y / (1 + np.exp(-y)) if kind == "silu" else y


@several
@given(seeds, sizes, sizes)
def test_activations_of_wild_values(seed: int, tokens: int, width: int) -> None:
    x = normal(seed, tokens, width) * 20
    for kind in ("gelu", "gelu_tanh", "relu", "tanh", "silu"):
        got = run_on(lambda g, v, kind=kind: g.activation(v, kind), x)
        np.testing.assert_allclose(got[0], activated(x.astype(np.float64), kind), atol=1e-5, rtol=1e-5)


def rounded(x: Array, grid: Grid) -> Array:
    return np.clip(np.rint(x / np.float32(grid.scale)) + grid.zero_point, -128, 127).astype(np.int64)


def static_product(x: Array, matrix: QuantizedMatrix, grids: SiteGrids) -> Array:
    """Integers of the result on the output's grid, by exact arithmetic."""
    accumulator = (rounded(x, grids.input) - grids.input.zero_point) @ matrix.integers.T.astype(np.int64)
    scale = matrix.scales.astype(np.float64) * grids.input.scale
    bias = 0 if matrix.bias is None else np.rint(matrix.bias / scale)
    y = (accumulator + bias) * scale / grids.output.scale
    return np.clip(np.rint(y) + grids.output.zero_point, -128, 127)


@several
@given(seeds, sizes, st.integers(1, 40), sizes, st.integers(-128, 127), st.integers(-128, 127), st.booleans())
def test_static_linear_is_within_one_step(
    seed: int, tokens: int, inner: int, outer: int, zero_in: int, zero_out: int, with_bias: bool
) -> None:
    x = normal(seed, tokens, inner)
    matrix = QuantizedMatrix(*quantize_rows(normal(seed + 1, outer, inner)), normal(seed, outer) if with_bias else None)
    grids = SiteGrids(Grid(0.05, zero_in), Grid(0.1, zero_out))
    weights = weights_of("w8a8-static", matrices={"w": matrix}, sites={"s": grids})
    got = run_on(lambda g, v: g.linear(v, "w", "s"), x, weights)[0]
    steps = np.rint(got / np.float32(0.1)) + zero_out
    assert np.abs(steps - static_product(x, matrix, grids)).max() <= 1


def test_relu_is_the_clamp_of_the_output_grid() -> None:
    x, matrix = normal(0, 4, 6), QuantizedMatrix(*quantize_rows(normal(1, 8, 6)), normal(2, 8))
    weights = weights_of("w8a8-static", matrices={"w": matrix}, sites={"s": SiteGrids(Grid(0.03, 0), Grid(0.02, -128))})
    got = run_on(lambda g, v: g.linear(v, "w", "s", "relu"), x, weights)[0]
    assert got.min() == 0
    np.testing.assert_allclose(got, np.clip(x @ matrix.dequantized().T + matrix.bias, 0, 255 * 0.02), atol=0.15)


def test_values_stay_integers_between_products_that_share_a_grid() -> None:
    between = Grid(0.05, -128)
    sites = {"a": SiteGrids(Grid(0.03, 0), between), "b": SiteGrids(between, Grid(0.1, 3))}
    matrices = {n: QuantizedMatrix(*quantize_rows(normal(i, 5, 5)), None) for i, n in enumerate("ab")}
    weights = weights_of("w8a8-static", matrices=matrices, sites=sites, tables={"x": normal(3, 4, 5)})

    def program(g: LiteRtGraph) -> dict[str, Value]:
        return {"y": g.linear(g.linear(g.embedding(g.token_ids(), "x"), "a", "a", "relu"), "b", "b")}

    names = operators_of(built(weights, 4, program))
    assert names == ["GATHER", "QUANTIZE", "FULLY_CONNECTED", "FULLY_CONNECTED", "DEQUANTIZE"]


def test_products_of_one_site_share_the_rounding_of_their_input() -> None:
    matrices = {n: QuantizedMatrix(*quantize_rows(normal(i, 5, 5)), None) for i, n in enumerate("qkv")}
    sites = {"s": SiteGrids(Grid(0.03, 0), Grid(0.1, 3))}
    weights = weights_of("w8a8-static", matrices=matrices, sites=sites, tables={"x": normal(3, 4, 5)})

    def program(g: LiteRtGraph) -> dict[str, Value]:
        parts = g.linears(g.embedding(g.token_ids(), "x"), ("q", "k", "v"), "s")
        return dict(zip("qkv", parts, strict=True))

    assert operators_of(built(weights, 4, program)).count("QUANTIZE") == 1


@several
@given(seeds, sizes, st.integers(2, 40), sizes)
def test_dynamic_linear_rounds_each_token(seed: int, tokens: int, inner: int, outer: int) -> None:
    x = normal(seed, tokens, inner) * np.logspace(0, 2, tokens)[:, None].astype(np.float32)
    matrix = QuantizedMatrix(*quantize_rows(normal(seed + 1, outer, inner)), normal(seed + 2, outer))
    got = run_on(lambda g, v: g.linear(v, "w", "s"), x, weights_of("w8a8-dynamic", matrices={"w": matrix}))[0]
    exact = x @ matrix.dequantized().T + matrix.bias
    step = (np.maximum(x.max(1), 0) - np.minimum(x.min(1), 0)) / 255
    bound = 1.01 * step[:, None] * np.abs(matrix.dequantized()).sum(1) + 1e-4
    assert (np.abs(got - exact) <= bound).all()


def test_dynamic_linear_multiplies_integers() -> None:
    x, matrix = normal(0, 4, 64), QuantizedMatrix(*quantize_rows(normal(1, 32, 64)), None)
    got = run_on(lambda g, v: g.linear(v, "w", "s"), x, weights_of("w8a8-dynamic", matrices={"w": matrix}))[0]
    assert np.abs(got - x @ matrix.dequantized().T).max() > 1e-3, "the float product would be within 1e-5"


@several
@given(seeds, sizes, st.integers(2, 40), st.booleans())
def test_layer_norm(seed: int, tokens: int, width: int, with_residual: bool) -> None:
    x, rest = normal(seed, tokens, width) * 3 + 1, normal(seed + 1, tokens, width)
    gain, bias = normal(seed + 2, width), normal(seed + 3, width)
    weights = weights_of(vectors={"n.weight": gain, "n.bias": bias}, tables={"rest": rest})
    got = run_on(
        lambda g, v: g.layer_norm(v, "n", 1e-5, g.embedding(g.token_ids(), "rest") if with_residual else None),
        x,
        weights,
    )
    y = (x + rest if with_residual else x).astype(np.float64)
    want = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-5) * gain + bias
    # Two values that all but cancel leave a variance of rounding noise beside eps.
    np.testing.assert_allclose(got[0], want, atol=2e-4 if width == 2 else 1e-5, rtol=1e-4)


@several
@given(seeds, st.integers(1, 9), st.integers(1, 3), st.integers(1, 5), st.booleans(), st.sampled_from([None, 0.3]))
def test_attention(seed: int, tokens: int, heads: int, width: int, one_query: bool, scale: float | None) -> None:
    x = normal(seed, tokens, heads * width)
    mask = np.ones((1, tokens))
    mask[:, np.random.default_rng(seed).integers(1, tokens + 1) :] = 0

    def program(g: LiteRtGraph, v: Value) -> Value:
        query = g.token(v, 0) if one_query else v
        return g.attention(query, v, v, g.token_mask(), heads, scale=scale)

    got = run_on(program, x, attention_mask=mask)[0]
    parts = x.reshape(tokens, heads, width).transpose(1, 0, 2)
    queries = parts[:, :1] if one_query else parts
    scores = queries @ parts.transpose(0, 2, 1) * (width**-0.5 if scale is None else scale)
    scores = np.where(mask[0].astype(bool), scores, -np.inf)
    want = (softmax(scores) @ parts).transpose(1, 0, 2).reshape(-1, heads * width)
    np.testing.assert_allclose(got, want, atol=1e-5)


def buckets(offsets: Array) -> Array:
    return np.clip(offsets, -3, 3) + 3


@several
@given(seeds, st.integers(1, 8), st.integers(1, 3))
def test_relative_bias_in_attention(seed: int, tokens: int, heads: int) -> None:
    x, table = normal(seed, tokens, heads * 2), normal(seed + 1, 7, heads)
    seen: list[Value] = []

    def program(g: LiteRtGraph, v: Value) -> Value:
        seen.append(g.relative_bias("table", buckets))
        return g.attention(v, v, v, g.token_mask(), heads, bias=seen[-1], scale=0.5)

    got = run_on(program, x, weights_of(vectors={"table": table}), attention_mask=np.ones((1, tokens)))[0]
    places = np.arange(tokens)
    bias = table[buckets(places[None] - places[:, None])].transpose(2, 0, 1)
    parts = x.reshape(tokens, heads, 2).transpose(1, 0, 2)
    want = softmax((parts @ parts.transpose(0, 2, 1) + bias) * 0.5) @ parts
    assert seen[0].shape == (1, heads, tokens, tokens)
    np.testing.assert_allclose(got, want.transpose(1, 0, 2).reshape(tokens, -1), atol=1e-5)


def sinusoids(offsets: Array) -> Array:
    angles = offsets[:, None] / np.array([1.0, 3.0, 10.0])
    return np.concatenate([np.sin(angles), np.cos(angles)], 1).astype(np.float32)


@several
@given(seeds, st.integers(1, 8), st.integers(0, 5), st.integers(1, 3))
def test_relative_scores(seed: int, tokens: int, more: int, heads: int) -> None:
    x, weight = normal(seed, tokens, heads * 2), normal(seed + 1, heads * 2, 6)
    weights = weights_of(matrices={"r": FloatMatrix(weight, None)}, tables={"x": x})

    def program(g: LiteRtGraph) -> dict[str, Value]:
        return {"y": g.relative_scores(g.embedding(g.token_ids(), "x"), "r", sinusoids, heads)}

    got = run(weights, tokens, program, longest=tokens + more, input_ids=np.arange(tokens)[None])["y"][0]
    places = np.arange(tokens)
    offsets = (places[:, None] - places[None]).reshape(-1)
    keys = (sinusoids(offsets) @ weight.T).reshape(tokens, tokens, heads, 2)
    want = np.einsum("ihd,ijhd->hij", x.reshape(tokens, heads, 2), keys)
    np.testing.assert_allclose(got, want, atol=1e-5)


@several
@given(seeds, st.integers(1, 8), st.integers(1, 3))
def test_segment_scores(seed: int, tokens: int, heads: int) -> None:
    x, table = normal(seed, tokens, heads * 2), normal(seed + 1, 2, heads, 2)
    types = np.random.default_rng(seed).integers(0, 4, (1, tokens))

    def program(g: LiteRtGraph, v: Value) -> Value:
        return g.segment_scores(v, "segments", g.token_types(), heads)

    got = run_on(program, x, weights_of(vectors={"segments": table}), token_type_ids=types)[0]
    differ = (types[0][:, None] != types[0][None]).astype(int)
    want = np.einsum("ihd,ijhd->hij", x.reshape(tokens, heads, 2), table[differ])
    np.testing.assert_allclose(got, want, atol=1e-5)


@several
@given(seeds, sizes, sizes)
def test_reading_out(seed: int, tokens: int, width: int) -> None:
    x = normal(seed, tokens, width)
    mask = np.random.default_rng(seed).integers(0, 2, (1, tokens))
    mask[0, seed % tokens] = 1
    first = run_on(lambda g, v: g.squeeze_token(g.token(v, 0)), x)
    last = run_on(lambda g, v: g.token(v, -1), x)
    mean = run_on(lambda g, v: g.mean_pool(v, g.token_mask()), x, attention_mask=mask)
    unit = run_on(lambda g, v: g.l2_normalize(v), x)
    np.testing.assert_array_equal(first, x[:1])
    np.testing.assert_array_equal(last, x[None, -1:])
    np.testing.assert_allclose(mean, x[mask[0] == 1].mean(0)[None], atol=1e-5)
    np.testing.assert_allclose(unit[0], x / np.linalg.norm(x, axis=-1, keepdims=True), atol=1e-5)


def test_l2_normalize_of_zeros_is_zeros() -> None:
    assert not run_on(lambda g, v: g.l2_normalize(v), np.zeros((2, 3), np.float32)).any()


@several
@given(seeds, sizes)
def test_add_and_add_vector(seed: int, tokens: int) -> None:
    x, vector = normal(seed, tokens, 6), normal(seed + 1, 2, 3)
    got = run_on(lambda g, v: g.add(v, g.add_vector(v, "v")), x, weights_of(vectors={"v": vector}))[0]
    np.testing.assert_allclose(got, x + (x + vector.reshape(-1)), rtol=1e-6)


@pytest.mark.parametrize(
    ("what", "program"),
    [
        ("linear layer 'w'", lambda g: g.linear(g.table_row("t", 0), "w", "s")),
        ("table 'u'", lambda g: g.table_row("u", 0)),
        ("parameter 'n.weight'", lambda g: g.layer_norm(g.table_row("t", 0), "n", 1e-5)),
        ("activation grids of 's'", lambda g: g.linear(g.table_row("t", 0), "m", "s")),
    ],
)
def test_what_the_weights_lack_is_named(what: str, program: Callable[[LiteRtGraph], Value]) -> None:
    matrix = QuantizedMatrix(*quantize_rows(normal(0, 3, 3)), None)
    weights = weights_of("w8a8-static", tables={"t": normal(0, 2, 3)}, matrices={"m": matrix})
    with pytest.raises(StudentError, match=what):
        built(weights, 2, lambda g: {"y": program(g)})
