"""Linear layers, run by OpenVINO alone and compared with whole-number arithmetic in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

ov = pytest.importorskip("openvino")

from edgescribe.converters.export.openvino_graph import OpenVinoGraph  # noqa: E402
from edgescribe.converters.quantized_weights import (  # noqa: E402
    FloatMatrix,
    Grid,
    QuantizedMatrix,
    QuantizedWeights,
    SiteGrids,
    bias_integers,
    quantize_rows,
)
from edgescribe.device_profiles.int8_gain import has_dot_product  # noqa: E402
from edgescribe.device_profiles.probe_cpu import probe_cpu  # noqa: E402
from edgescribe.errors import StudentError  # noqa: E402

CORES = probe_cpu()
exact_int8 = pytest.mark.skipif(
    CORES.isa == "x86_64" and not any(has_dot_product(kind.features) for kind in CORES.clusters.values()),
    reason="OpenVINO's int8 kernels saturate on x86 processors without VNNI",
)

quick = settings(max_examples=15, deadline=None)
SIZES = st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 40), st.integers(1, 40))
"""Batch, tokens, width in, width out."""


def run(weights: QuantizedWeights, program: Any, batch: int, tokens: int) -> tuple[dict[str, np.ndarray], Any]:
    """Outputs of ``program(graph, x)`` with ``x`` the rows of table ``x``, and the compiled model."""
    graph = OpenVinoGraph(weights, 16)
    program(graph, graph.embedding(graph.token_ids(), "x"))
    compiled = ov.Core().compile_model(graph.model("test"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    ids = np.arange(batch * tokens, dtype=np.int32).reshape(batch, tokens)
    return {port.get_any_name(): array.copy() for port, array in compiled({"input_ids": ids}).items()}, compiled


def grid_over(values: np.ndarray, share: float = 1.0, rectified: bool = False) -> Grid:
    """A grid over ``share`` of the range of ``values``, so that under 1 some lie outside."""
    low = 0.0 if rectified else min(float(values.min()), 0.0) * share
    high = max(float(values.max()), 1e-3) * share
    scale = float(np.float32((high - low) / 255))
    return Grid(scale, round(-low / scale) - 128)


def on_grid(values: np.ndarray, grid: Grid) -> np.ndarray:
    """Whole numbers less the zero point."""
    steps = np.rint(values.astype(np.float64) / grid.scale)
    return np.clip(steps, -128 - grid.zero_point, 127 - grid.zero_point)


def layer(seed: int, width: int, out: int, with_bias: bool) -> QuantizedMatrix:
    random = np.random.default_rng(seed)
    codes, scales = quantize_rows(random.normal(size=(out, width)).astype(np.float32))
    return QuantizedMatrix(codes, scales, random.normal(size=out).astype(np.float32) if with_bias else None)


def inputs(seed: int, batch: int, tokens: int, width: int) -> np.ndarray:
    return (np.random.default_rng(seed + 77).normal(size=(batch, tokens, width)) * 2).astype(np.float32)


def near_half(values: np.ndarray) -> np.ndarray:
    """Where float noise may round either way."""
    return np.abs(np.abs(values - np.floor(values)) - 0.5) < 2e-3


@exact_int8
@quick
@given(SIZES, st.integers(0, 9999), st.booleans(), st.booleans(), st.sampled_from([1.0, 0.5]))
def test_static(sizes: tuple[int, ...], seed: int, with_bias: bool, rectified: bool, share: float) -> None:
    batch, tokens, width, out = sizes
    x, matrix = inputs(seed, batch, tokens, width), layer(seed, width, out, with_bias)
    grid = grid_over(x, share)
    # Inputs that lie on their grid: what follows must then be right to the last step.
    x = (on_grid(x, grid) * grid.scale).astype(np.float32)
    sums = on_grid(x, grid) @ matrix.integers.T.astype(np.float64)
    exact = (sums + bias_integers(matrix, grid)) * grid.scale * matrix.scales
    leaving = grid_over(exact, share, rectified)
    weights = QuantizedWeights(
        "w8a8-static", {"m": matrix}, {"x": x.reshape(-1, width)}, {}, {"s": SiteGrids(grid, leaving)}, {}
    )
    y, _ = run(
        weights,
        lambda graph, value: graph.output("y", graph.linear(value, "m", "s", "relu" if rectified else None)),
        batch,
        tokens,
    )
    steps = y["y"].astype(np.float64) / leaving.scale
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-3)
    wanted = on_grid(exact, leaving)
    sure = ~near_half(exact / leaving.scale)
    np.testing.assert_array_equal(np.rint(steps)[sure], wanted[sure])
    assert np.abs(np.rint(steps) - wanted).max() <= 1


@quick
@given(SIZES, st.integers(0, 9999))
def test_static_rounds_and_clamps_its_input(sizes: tuple[int, ...], seed: int) -> None:
    batch, tokens, width, _ = sizes
    x = inputs(seed, batch, tokens, width)
    grid = grid_over(x, 0.5)
    matrix = QuantizedMatrix(np.eye(width, dtype=np.int8), np.ones(width, np.float32), None)
    weights = QuantizedWeights(
        "w8a8-static", {"m": matrix}, {"x": x.reshape(-1, width)}, {}, {"s": SiteGrids(grid, grid)}, {}
    )
    y, _ = run(weights, lambda graph, value: graph.output("y", graph.linear(value, "m", "s")), batch, tokens)
    steps, wanted = np.rint(y["y"] / grid.scale), on_grid(x, grid)
    sure = ~near_half(x.astype(np.float64) / grid.scale)
    np.testing.assert_array_equal(steps[sure], wanted[sure])


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "tanh", "silu", "relu"])
def test_static_activation_comes_after_the_grid(activation: str) -> None:
    x, matrix = inputs(5, 2, 7, 24), layer(5, 24, 33, True)
    entering = grid_over(x)
    leaving = grid_over(x @ matrix.dequantized().T, 0.8)
    weights = QuantizedWeights(
        "w8a8-static", {"m": matrix}, {"x": x.reshape(-1, 24)}, {}, {"s": SiteGrids(entering, leaving)}, {}
    )

    def program(graph: Any, value: Any) -> None:
        graph.output("fused", graph.linear(value, "m", "s", activation))
        graph.output("apart", graph.activation(graph.linear(value, "m", "s"), activation))

    y, _ = run(weights, program, 2, 7)
    np.testing.assert_allclose(y["fused"], y["apart"], atol=2e-6)


@exact_int8
@quick
@given(SIZES, st.integers(0, 9999), st.booleans())
def test_dynamic(sizes: tuple[int, ...], seed: int, with_bias: bool) -> None:
    batch, tokens, width, out = sizes
    x, matrix = inputs(seed, batch, tokens, width), layer(seed, width, out, with_bias)
    x[0, 0] = 0  # a token of noughts
    weights = QuantizedWeights("w8a8-dynamic", {"m": matrix}, {"x": x.reshape(-1, width)}, {}, {}, {})
    y, _ = run(weights, lambda graph, value: graph.output("y", graph.linear(value, "m", "s")), batch, tokens)
    step = np.maximum(np.abs(x).max(-1, keepdims=True), 1e-8).astype(np.float64) / 127
    codes = np.rint(x / step)
    wanted = codes @ matrix.integers.T.astype(np.float64) * step * matrix.scales
    wanted = wanted + (0 if matrix.bias is None else matrix.bias)
    sure = ~near_half(x / step).any(-1)
    np.testing.assert_allclose(y["y"][sure], wanted[sure], rtol=1e-5, atol=1e-4)


@quick
@given(SIZES, st.integers(0, 9999), st.booleans())
def test_float(sizes: tuple[int, ...], seed: int, with_bias: bool) -> None:
    batch, tokens, width, out = sizes
    x = inputs(seed, batch, tokens, width)
    weight = np.random.default_rng(seed).normal(size=(out, width)).astype(np.float32)
    bias = np.linspace(-1, 1, out, dtype=np.float32) if with_bias else None
    weights = QuantizedWeights("fp32", {"m": FloatMatrix(weight, bias)}, {"x": x.reshape(-1, width)}, {}, {}, {})
    y, _ = run(weights, lambda graph, value: graph.output("y", graph.linear(value, "m", "s", "tanh")), batch, tokens)
    wanted = np.tanh(x.astype(np.float64) @ weight.T + (0 if bias is None else bias))
    np.testing.assert_allclose(y["y"], wanted, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "w8a8-static", "w8a8-dynamic"])
def test_several_layers_at_one_site_are_each_what_it_is_alone(precision: str) -> None:
    x = inputs(9, 2, 5, 12)
    layers: dict[str, Any] = {name: layer(index, 12, 6 + index, index != 1) for index, name in enumerate("qkv")}
    if precision == "fp32":
        layers = {name: FloatMatrix(m.dequantized(), m.bias) for name, m in layers.items()}
    site = SiteGrids(grid_over(x), Grid(0.05, 3))
    sites = {"s": site} if precision == "w8a8-static" else {}
    weights = QuantizedWeights(precision, layers, {"x": x.reshape(-1, 12)}, {}, sites, {})

    def program(graph: Any, value: Any) -> None:
        for name, part in zip("qkv", graph.linears(value, ("q", "k", "v"), "s"), strict=True):
            graph.output(f"all {name}", part)
        (alone,) = graph.linears(graph.token(value, 0), ("q",), "s")
        graph.output("first q", alone)
        for name in "qkv":
            graph.output(f"one {name}", graph.linear(value, name, "s"))

    y, _ = run(weights, program, 2, 5)
    for index, name in enumerate("qkv"):
        assert y[f"all {name}"].shape == (2, 5, 6 + index)
        np.testing.assert_allclose(y[f"all {name}"], y[f"one {name}"], atol=1e-5)
    np.testing.assert_allclose(y["first q"], y["all q"][:, :1], atol=1e-5)


def test_constants_outlive_the_arrays_they_were_made_of() -> None:
    def build() -> Any:
        x, matrix = inputs(3, 1, 4, 64), layer(3, 64, 64, True)
        weights = QuantizedWeights("w8a8-dynamic", {"m": matrix}, {"x": x.reshape(-1, 64)}, {}, {}, {})
        graph = OpenVinoGraph(weights, 16)
        graph.output("y", graph.linear(graph.embedding(graph.token_ids(), "x"), "m", "s"))
        model = graph.model("test")
        matrix.integers[:] = 0
        matrix.scales[:] = 0
        x[:] = 0
        return model

    model = build()
    junk = [np.full((64, 64), value, np.int8) for value in range(100)]
    y = ov.Core().compile_model(model, "CPU")({"input_ids": np.arange(4, dtype=np.int32)[None]})[0]
    assert len(junk) == 100
    assert np.abs(y).max() > 1


def test_a_static_layer_without_grids_is_refused() -> None:
    rows = np.ones((4, 4), np.float32)
    weights = QuantizedWeights("w8a8-static", {"m": layer(1, 4, 4, False)}, {"x": rows}, {}, {}, {})
    with pytest.raises(StudentError, match="site 's' has no activation grids"):
        run(weights, lambda graph, value: graph.output("y", graph.linear(value, "m", "s")), 1, 4)
