"""Linear layers of the ONNX graph, alone, against integer arithmetic in numpy; and how their weights are stored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import onnxruntime
import pytest
from edgescribe.converters.export.onnx import OnnxContents, kernel_report, read_back, write_model
from edgescribe.converters.export.onnx_graph import OnnxGraph
from edgescribe.converters.quantized_weights import (
    FloatMatrix,
    Grid,
    QuantizedMatrix,
    QuantizedWeights,
    SiteGrids,
    bias_integers,
    quantize_rows,
)
from edgescribe.errors import StudentError
from hypothesis import given, settings
from hypothesis import strategies as st

ROWS = 31
alone = settings(max_examples=12, deadline=None)
grids = st.builds(Grid, st.floats(0.005, 0.05).map(lambda x: float(np.float32(x))), st.integers(-128, 127))


def grid(scale: float, zero_point: int) -> Grid:
    return Grid(float(np.float32(scale)), zero_point)


def floats(random: np.random.Generator, *shape: int) -> np.ndarray:
    return random.standard_normal(shape).astype(np.float32)


def quantized(random: np.random.Generator, outputs: int, inputs: int, biased: bool = True) -> QuantizedMatrix:
    return QuantizedMatrix(*quantize_rows(floats(random, outputs, inputs)), floats(random, outputs) if biased else None)


class Bench:
    """A program over one float table and some linear layers, written, run in ONNX Runtime and read back."""

    def __init__(self, weights: QuantizedWeights, ids: np.ndarray, program: Callable[[OnnxGraph], None]) -> None:
        graph = OnnxGraph(weights, 16)
        program(graph)
        with TemporaryDirectory() as folder:
            path = Path(folder, "program.onnx")
            write_model(graph, path)
            self.nodes = [node.op_type for node in onnx.load(path).graph.node]
            feeds = {"input_ids": ids.astype(np.int32), "attention_mask": np.ones(ids.shape, np.int32)}
            for exact in ("0", "1"):
                options = onnxruntime.SessionOptions()
                options.intra_op_num_threads, options.log_severity_level = 1, 3
                options.add_session_config_entry("session.x64quantprecision", exact)
                session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
                self.outputs = session.run(None, feeds)
            self.contents: OnnxContents = read_back(path)
            self.kernels = kernel_report(path)


def weights(
    precision: str,
    table: np.ndarray,
    matrices: dict[str, QuantizedMatrix | FloatMatrix],
    sites: dict[str, SiteGrids] | None = None,
) -> QuantizedWeights:
    return QuantizedWeights(precision, matrices, {"t": table}, {}, sites or {}, {})


def on_grid(x: np.ndarray, grid: Grid) -> np.ndarray:
    """Integers of ``x`` on ``grid``, as float64."""
    return np.clip(np.rint(x.astype(np.float64) / grid.scale) + grid.zero_point, -128, 127)


def static_layer(x: np.ndarray, matrix: QuantizedMatrix, site: SiteGrids) -> np.ndarray:
    """Integers that leave a static site, in exact arithmetic."""
    total = (on_grid(x, site.input) - site.input.zero_point) @ matrix.integers.T.astype(np.float64)
    total += bias_integers(matrix, site.input)
    scaled = total * (matrix.scales.astype(np.float64) * site.input.scale / site.output.scale)
    return np.clip(np.rint(scaled) + site.output.zero_point, -128, 127)


def dynamic_layer(x: np.ndarray, matrix: QuantizedMatrix) -> tuple[np.ndarray, float]:
    """What leaves a dynamic site in exact arithmetic, and the largest step that one input on a border can make."""
    low, high = min(x.min(), 0), max(x.max(), 0)
    scale = np.float32((high - low) / 255)
    zero = np.rint(-low / scale)
    integers = np.clip(np.rint(x / scale) + zero, 0, 255) - zero
    expected = integers @ matrix.integers.T.astype(np.float64) * scale * matrix.scales
    if matrix.bias is not None:
        expected += matrix.bias
    return expected, float(scale) * float(np.abs(matrix.dequantized()).max())


@alone
@given(
    entering=grids, leaving=grids, relu=st.booleans(), biased=st.booleans(),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 9)), inputs=st.integers(1, 70), outputs=st.integers(1, 40),
    seed=st.integers(0, 2**31),
)  # fmt: skip
def test_a_static_layer_is_within_one_step(
    entering: Grid,
    leaving: Grid,
    relu: bool,
    biased: bool,
    shape: tuple[int, int],
    inputs: int,
    outputs: int,
    seed: int,
) -> None:
    random = np.random.default_rng(seed)
    if relu:
        leaving = Grid(leaving.scale, -128)
    table, matrix = floats(random, ROWS, inputs), quantized(random, outputs, inputs, biased)
    site = SiteGrids(entering, leaving)
    ids = random.integers(0, ROWS, shape)

    def program(graph: OnnxGraph) -> None:
        x = graph.embedding(graph.token_ids(), "t")
        graph.output("y", graph.linear(x, "m", "s", "relu" if relu else None))

    bench = Bench(weights("w8a8-static", table, {"m": matrix}, {"s": site}), ids, program)
    expected = static_layer(table[ids], matrix, site)
    steps = np.abs(bench.outputs[0] / leaving.scale + leaving.zero_point - expected)
    # A value that lies on the border of two steps may fall to either side: of what enters, or of what leaves.
    assert np.mean(steps > 0.01) < 0.05 or steps.size < 100
    assert steps.max() < 1.5 + np.abs(matrix.integers).max() * matrix.scales.max() * entering.scale / leaving.scale
    assert not relu or bench.outputs[0].min() >= 0
    assert bench.kernels[0].is_int8
    assert bench.contents.sites == {"s": site}
    np.testing.assert_array_equal(bench.contents.matrices["m"][0], matrix.integers)
    np.testing.assert_array_equal(bench.contents.matrices["m"][1], matrix.scales)


def test_integers_pass_between_neighbours_with_equal_grids() -> None:
    random = np.random.default_rng(1)
    shared, other = grid(0.02, -128), grid(0.03, 4)
    matrices = {"a": quantized(random, 24, 16), "b": quantized(random, 8, 24)}
    table = floats(random, ROWS, 16)
    ids = random.integers(0, ROWS, (2, 5))

    def program(graph: OnnxGraph) -> None:
        inner = graph.linear(graph.embedding(graph.token_ids(), "t"), "a", "first", "relu")
        graph.output("y", graph.linear(inner, "b", "second"))

    for entering, quantisations in ((shared, 1), (grid(0.02, -127), 2)):
        sites = {"first": SiteGrids(other, shared), "second": SiteGrids(entering, other)}
        bench = Bench(weights("w8a8-static", table, matrices, sites), ids, program)
        assert bench.nodes.count("QuantizeLinear") == quantisations
        assert bench.contents.sites == sites


def test_relu_without_a_grid_that_clamps_is_a_relu() -> None:
    random = np.random.default_rng(2)
    site = SiteGrids(grid(0.03, 0), grid(0.05, 3))
    table, matrix = floats(random, ROWS, 16), quantized(random, 8, 16)
    ids = random.integers(0, ROWS, (2, 5))

    def program(graph: OnnxGraph) -> None:
        graph.output("y", graph.linear(graph.embedding(graph.token_ids(), "t"), "m", "s", "relu"))

    got = Bench(weights("w8a8-static", table, {"m": matrix}, {"s": site}), ids, program).outputs[0]
    expected = np.maximum(static_layer(table[ids], matrix, site) - 3, 0) * site.output.scale
    assert got.min() == 0
    np.testing.assert_allclose(got, expected, atol=site.output.scale * 1.01)


def test_activations_that_fill_the_grid_do_not_saturate() -> None:
    """Products of 255 x 127, side by side, are over 16 bits; the sum must be exact however the engine adds them."""
    site = SiteGrids(Grid(1.0, -128), Grid(256.0, -128))
    integers = np.full((4, 64), 127, np.int8)
    matrix = QuantizedMatrix(integers, np.full(4, 1 / 32, np.float32), None)
    table = np.full((ROWS, 64), 255, np.float32)

    def program(graph: OnnxGraph) -> None:
        graph.output("y", graph.linear(graph.embedding(graph.token_ids(), "t"), "m", "s"))

    # The last run of a bench is with session.x64quantprecision, which is exact on every machine.
    got = Bench(weights("w8a8-static", table, {"m": matrix}, {"s": site}), np.zeros((1, 3), int), program).outputs[0]
    np.testing.assert_array_equal(got, 253 * 256.0)


@alone
@given(batch=st.integers(1, 3), tokens=st.integers(1, 9), inputs=st.integers(1, 70), seed=st.integers(0, 2**31))
def test_a_dynamic_layer(batch: int, tokens: int, inputs: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    table, matrix = floats(random, ROWS, inputs), quantized(random, 12, inputs, bool(seed % 2))
    ids = random.integers(0, ROWS, (batch, tokens))

    def program(graph: OnnxGraph) -> None:
        graph.output("y", graph.linear(graph.embedding(graph.token_ids(), "t"), "m", "s"))

    bench = Bench(weights("w8a8-dynamic", table, {"m": matrix}), ids, program)
    expected, step = dynamic_layer(table[ids], matrix)
    assert np.abs(bench.outputs[0] - expected).max() <= step * 1.01 + 1e-5
    assert bench.kernels[0].is_int8
    np.testing.assert_array_equal(bench.contents.matrices["m"][0], matrix.integers)


@pytest.mark.parametrize("precision", ["fp32", "w8a8-static", "w8a8-dynamic"])
def test_layers_that_read_the_same_run_as_one_product(precision: str) -> None:
    random = np.random.default_rng(4)
    names = ("q", "k", "v")
    table = floats(random, ROWS, 16)
    matrices = {name: quantized(random, 12, 16, biased=name != "k") for name in names}
    stored = matrices if precision != "fp32" else {n: FloatMatrix(m.dequantized(), m.bias) for n, m in matrices.items()}
    site = SiteGrids(grid(0.03, 1), grid(0.12, -2))
    ids = random.integers(0, ROWS, (2, 5))

    def program(graph: OnnxGraph) -> None:
        x = graph.embedding(graph.token_ids(), "t")
        for name, part in zip("xyz", graph.linears(x, names, "s"), strict=True):
            graph.output(name, part)

    sites = {"s": site} if precision == "w8a8-static" else {}
    bench = Bench(weights(precision, table, stored, sites), ids, program)
    assert len(bench.kernels) == 1
    for got, name in zip(bench.outputs, names, strict=True):
        matrix = matrices[name]
        if precision == "fp32":
            bias = 0 if matrix.bias is None else matrix.bias
            expected, tolerance = table[ids].astype(np.float64) @ matrix.dequantized().T + bias, 1e-5
        elif precision == "w8a8-dynamic":
            expected, step = dynamic_layer(table[ids], matrix)
            tolerance = step * 1.01 + 1e-5
        else:
            expected = (static_layer(table[ids], matrix, site) - site.output.zero_point) * site.output.scale
            tolerance = site.output.scale * 1.01
        np.testing.assert_allclose(got, expected, atol=tolerance)
        if precision != "fp32":
            np.testing.assert_array_equal(bench.contents.matrices[name][0], matrices[name].integers)
            np.testing.assert_array_equal(bench.contents.matrices[name][1], matrices[name].scales)


@pytest.mark.parametrize("precision", ["fp32", "w8a8-static", "w8a8-dynamic"])
def test_layers_that_share_weights_store_them_once(precision: str) -> None:
    random = np.random.default_rng(5)
    size, names = 48, ("q", "k", "v")
    table = floats(random, ROWS, size)
    matrices = {name: quantized(random, size, size) for name in names}
    stored = matrices if precision != "fp32" else {n: FloatMatrix(m.dequantized(), m.bias) for n, m in matrices.items()}
    site = SiteGrids(grid(0.03, 1), grid(0.15, -2))

    def program(graph: OnnxGraph) -> None:
        x = graph.embedding(graph.token_ids(), "t")
        for layer in range(2):
            x = graph.attention(*graph.linears(x, names, f"{layer}"), graph.token_mask(), 4)
        key, value = graph.linears(x, names[1:], "2")
        (query,) = graph.linears(graph.token(x, 0), names[:1], "2")
        graph.output("y", graph.squeeze_token(graph.attention(query, key, value, graph.token_mask(), 4)))

    sites = {str(layer): site for layer in range(3)} if precision == "w8a8-static" else {}
    ids = random.integers(0, ROWS, (2, 5))
    bench = Bench(weights(precision, table, stored, sites), ids, program)
    assert len(bench.kernels) == 4
    assert bench.contents.tables == {}
    assert bench.contents.sites == sites
    if precision != "fp32":
        assert set(bench.contents.matrices) == set(names)
        assert all(kernel.is_int8 for kernel in bench.kernels)


def test_a_matrix_left_in_float_stays_float_beside_int8_ones() -> None:
    random = np.random.default_rng(6)
    site = SiteGrids(grid(0.03, 1), grid(0.12, -2))
    matrices = {"a": quantized(random, 12, 16), "b": FloatMatrix(floats(random, 5, 12), floats(random, 5))}
    table = floats(random, ROWS, 16)

    def program(graph: OnnxGraph) -> None:
        graph.output("y", graph.linear(graph.linear(graph.embedding(graph.token_ids(), "t"), "a", "s"), "b", "out"))

    ids = random.integers(0, ROWS, (2, 5))
    bench = Bench(weights("w8a8-static", table, matrices, {"s": site}), ids, program)
    assert [kernel.is_int8 for kernel in bench.kernels] == [True, False]
    inner = (static_layer(table[ids], matrices["a"], site) + 2) * 0.12
    np.testing.assert_allclose(bench.outputs[0], inner @ matrices["b"].weight.T + matrices["b"].bias, atol=0.3)


def test_int8_weights_without_grids_are_refused() -> None:
    random = np.random.default_rng(7)
    stored = weights("w8a8-static", floats(random, ROWS, 16), {"m": quantized(random, 4, 16)})
    graph = OnnxGraph(stored, 16)
    with pytest.raises(StudentError, match="'lonely'"):
        graph.linear(graph.embedding(graph.token_ids(), "t"), "m", "lonely")
