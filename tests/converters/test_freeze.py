"""Grids: what training computes with fake quantisation is what is frozen for export, number for number."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from edgescribe.converters.anatomy import ENCODERS
from edgescribe.converters.fake_quantize import DynamicQuantizer, StaticQuantizer, fake_quantize_rows
from edgescribe.converters.freeze import freeze, freeze_float
from edgescribe.converters.quantized_weights import (
    FloatMatrix,
    Grid,
    QuantizedMatrix,
    QuantizedTable,
    bias_integers,
    quantize_rows,
)
from edgescribe.converters.student import Student
from edgescribe.converters.torch_graph import TorchGraph, as_matrix
from edgescribe.converters.training import calibrate
from edgescribe.converters.training_data import collate, make_examples
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

Make = Callable[..., Student]
rows = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 5), st.integers(1, 9)),
    elements=st.floats(-1e6, 1e6, width=32, allow_subnormal=False),
)


def calibrated(student: Student, precision: str, texts: list[str]) -> TorchGraph:
    graph = TorchGraph(student, precision).eval()
    calibrate(graph, make_examples(student, texts, None))
    return graph


@given(rows)
def test_rows_round_alike_in_training_and_export(weight: np.ndarray) -> None:
    integers, scales = quantize_rows(weight)
    rounded = fake_quantize_rows(torch.from_numpy(weight))
    np.testing.assert_array_equal(integers.astype(np.float32) * scales[:, None], rounded.numpy())
    assert np.abs(integers.astype(np.int32)).max() <= 127
    assert (np.abs(rounded.numpy() - weight) <= scales[:, None] * 0.5001).all()


def test_gradients_pass_straight_through_rows() -> None:
    weight = torch.randn(3, 5, requires_grad=True)
    upstream = torch.randn(3, 5)
    fake_quantize_rows(weight).backward(upstream)
    assert weight.grad is not None
    assert torch.equal(weight.grad, upstream)


@pytest.mark.parametrize("precision", ["w8a8-static", "w8a8-dynamic"])
@pytest.mark.parametrize("family", ENCODERS)
def test_frozen_numbers_are_those_of_training(
    family: str, precision: str, make_student: Make, sentences: list[str]
) -> None:
    student = make_student(family)
    graph = calibrated(student, precision, sentences)
    frozen = freeze(graph)
    folded = 0
    for name, parameter in student.layout.items():
        short, weight = name.removesuffix(".weight"), student.state[name]
        if parameter.kind == "matrix":
            matrix = frozen.matrices[short]
            dense = as_matrix(weight, parameter)
            if isinstance(matrix, FloatMatrix):
                np.testing.assert_array_equal(matrix.weight, dense.numpy())
                folded += 1
                continue
            assert isinstance(matrix, QuantizedMatrix)
            np.testing.assert_array_equal(matrix.dequantized(), fake_quantize_rows(dense.contiguous()).numpy())
            bias = student.state.get(f"{short}.bias")
            assert (matrix.bias is None) == (bias is None)
            if bias is not None and matrix.bias is not None:
                np.testing.assert_array_equal(matrix.bias, bias.numpy())
        elif parameter.kind == "table":
            table = frozen.tables[short]
            assert isinstance(table, QuantizedTable)
            np.testing.assert_array_equal(table.dequantized(), fake_quantize_rows(weight).numpy())
        elif parameter.kind != "bias":
            np.testing.assert_array_equal(frozen.vectors[name], weight.numpy())
    assert folded == (student.shape.layers if family == "xlnet" else 0)
    assert bool(frozen.sites) == (precision == "w8a8-static")
    for site, grids in frozen.sites.items():
        key = site.replace(".", "/")
        assert grids.input == graph.inputs[key].grid()
        assert grids.output == graph.outputs[key].grid()


@pytest.mark.parametrize("precision", ["w8a8-static", "w8a8-dynamic"])
@pytest.mark.parametrize("family", ENCODERS)
def test_quantised_answers_stay_near_the_float_ones(
    family: str, precision: str, make_student: Make, sentences: list[str]
) -> None:
    """Random weights of hardly any width are as hard as it gets: an eighth of the answers' spread, a quarter on static
    grids of few texts, is near."""
    for task in ("classify", "embed"):
        student = make_student(family, task)
        feeds = collate(make_examples(student, sentences, None), student, None).feeds
        graph = calibrated(student, precision, sentences)
        with torch.no_grad():
            (exact,) = TorchGraph(student).run(feeds).values()
            (rounded,) = graph.run(feeds).values()
        error = float((exact - rounded).square().mean().sqrt() / exact.std())
        assert 0 < error < (0.25 if precision == "w8a8-static" else 0.125)


def test_each_layer_of_shared_weights_has_grids_of_its_own(make_student: Make, sentences: list[str]) -> None:
    sites = freeze(calibrated(make_student("albert", num_hidden_layers=3), "w8a8-static", sentences)).sites
    assert {f"layer.{layer}.{part}" for layer in range(3) for part in ("qkv", "feed_forward_in")} < set(sites)
    assert sites["layer.0.qkv"] != sites["layer.1.qkv"]


def test_float_artifacts_take_the_weights_unchanged(make_student: Make) -> None:
    student = make_student("electra")
    frozen = freeze_float(student)
    assert frozen.precision == "fp32"
    assert not frozen.sites
    for name, matrix in frozen.matrices.items():
        assert isinstance(matrix, FloatMatrix)
        np.testing.assert_array_equal(matrix.weight, student.state[f"{name}.weight"].numpy())
    assert all(isinstance(table, np.ndarray) for table in frozen.tables.values())


# Activation grids
@settings(max_examples=40, deadline=None)
@given(low=st.floats(-20, 0), span=st.floats(0.01, 50), seed=st.integers(0, 99))
def test_a_started_grid_holds_its_sample(low: float, span: float, seed: int) -> None:
    values = low + span * torch.rand(400, generator=torch.Generator().manual_seed(seed))
    quantizer = StaticQuantizer()
    assert torch.equal(quantizer(values), values)
    quantizer.start()
    grid = quantizer.grid()
    rounded = quantizer(values)
    steps = np.clip(np.rint(values.numpy() / grid.scale) + grid.zero_point, -128, 127)
    np.testing.assert_allclose(rounded.detach().numpy(), (steps - grid.zero_point) * grid.scale, atol=grid.scale * 1.01)
    reach = max(low + span, 0.0) - min(low, 0.0)
    assert float((rounded - values).abs().mean()) < reach / 255
    assert torch.equal(quantizer(rounded.detach()), rounded)


def test_a_rectified_grid_starts_at_nought() -> None:
    quantizer = StaticQuantizer(rectified=True)
    quantizer(torch.rand(100) * 7)
    quantizer.start()
    assert quantizer.grid().zero_point == -128
    assert not quantizer.shift.requires_grad
    assert float(quantizer(torch.tensor([-3.0]))) == 0.0
    assert float(quantizer(torch.tensor([6.0]))) == pytest.approx(6.0, abs=7 / 255)


def test_relu_sites_have_rectified_grids(make_student: Make, sentences: list[str]) -> None:
    student = make_student("distilbert", activation="relu")
    sites = freeze(calibrated(student, "w8a8-static", sentences)).sites
    for site in ("layer.0.feed_forward_in", "layer.1.feed_forward_in", "pooler"):
        assert sites[site].output.zero_point == -128


def test_outliers_do_not_set_the_grid() -> None:
    values = torch.randn(5000, generator=torch.Generator().manual_seed(1))
    quantizer = StaticQuantizer()
    quantizer(values)
    quantizer.start()
    absolute = float(values.max() - values.min()) / 255
    assert quantizer.grid().scale <= absolute * 1.0001


@pytest.mark.parametrize("width", [64, 96, 100, 3072])
def test_every_column_is_observed(width: int) -> None:
    for column in (0, 1, width // 2, width - 1):
        values = torch.randn((64, 4096 // 64, width), generator=torch.Generator().manual_seed(1)) * 1e-3
        values[:, :, column] = torch.linspace(-30.0, 50.0, 4096).reshape(64, -1)
        quantizer = StaticQuantizer()
        for batch in values.split(8):
            quantizer(batch)
        quantizer.start()
        rounded = quantizer(values).detach()
        assert float((rounded - values)[:, :, column].abs().mean()) < 80 / 255


def test_a_grid_that_is_to_cover_all_holds_what_is_rare() -> None:
    values = torch.randn((300, 1000), generator=torch.Generator().manual_seed(1))
    values[177, 333] = 40.0
    quantizer = StaticQuantizer()
    quantizer.covers_all = True
    quantizer(values)
    quantizer.start()
    grid = quantizer.grid()
    assert grid.scale == pytest.approx(float(40 - values.min()) / 255)
    assert float(quantizer(values)[177, 333]) == pytest.approx(40, abs=grid.scale)


def test_grids_survive_a_checkpoint(make_student: Make, sentences: list[str]) -> None:
    student = make_student("bert")
    first = calibrated(student, "w8a8-static", sentences)
    second = TorchGraph(student, "w8a8-static").eval()
    second.load_state_dict(first.state_dict())
    assert freeze(second).sites == freeze(first).sites
    feeds = collate(make_examples(student, sentences, None), student, None).feeds
    with torch.no_grad():
        assert torch.equal(first.run(feeds)["logits"], second.run(feeds)["logits"])


def test_grids_learn(make_student: Make, sentences: list[str]) -> None:
    student = make_student("bert")
    graph = calibrated(student, "w8a8-static", sentences).train()
    feeds = collate(make_examples(student, sentences, None), student, None).feeds
    graph.run(feeds)["logits"].square().sum().backward()
    for quantizer in graph.inputs.values():
        assert isinstance(quantizer, StaticQuantizer)
        assert quantizer.log_scale.grad is not None
    assert all(parameter.grad is not None for name, parameter in graph.weights.items() if "query" in name)


def test_a_quantizer_that_saw_nothing_cannot_start() -> None:
    with pytest.raises(RuntimeError, match="calibrate"):
        StaticQuantizer().start()


def test_each_token_has_its_own_scale_in_dynamic_grids() -> None:
    x = torch.tensor([[1.0, 0.5, -0.3], [1000.0, 500.0, -300.0]])
    rounded = DynamicQuantizer()(x)
    torch.testing.assert_close(rounded[0] * 1000, rounded[1])
    assert float((rounded[0] - x[0]).abs().max()) <= 0.5 / 127


def test_biases_on_the_accumulators_grid() -> None:
    matrix = QuantizedMatrix(np.ones((2, 3), np.int8), np.array([0.5, 0.25], np.float32), np.array([1, -3], np.float32))
    np.testing.assert_array_equal(bias_integers(matrix, Grid(0.125, 3)), [16, -96])
    np.testing.assert_array_equal(bias_integers(QuantizedMatrix(*quantize_rows(np.eye(2, dtype=np.float32)), None),
                                                Grid(0.1, 0)), [0, 0])  # fmt: skip
