"""Whole writers as OpenVINO artifacts: against the torch reference, what the files hold, and which kernels run them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
import torch
from edgescribe.converters.anatomy import DECODERS
from edgescribe.converters.export.openvino_decoder import export_openvino_decoder, kernel_report, read_back
from edgescribe.converters.freeze import freeze
from edgescribe.converters.quantized_weights import QuantizedMatrix, QuantizedTable, QuantizedWeights
from edgescribe.converters.student import Student
from edgescribe.converters.torch_decoder import TorchDecoder
from edgescribe.errors import BundleError, OutputError, StudentError, UsageError
from edgescribe.runtimes.decoder_contract import DecoderOptions
from edgescribe.runtimes.openvino_decoder import OpenVinoDecoders

pytestmark = pytest.mark.slow  # many families and precisions

MakeWriter = Callable[..., Student]
PRECISIONS = ("fp32", "w8a8-dynamic", "w4a8-dynamic")
CONTEXT = 40

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((family, {}) for family in DECODERS),
    *((family, {"tie_word_embeddings": tied}) for family in DECODERS for tied in (True, False)),
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("llama", {"hidden_act": "gelu"}),
    ("llama", {"hidden_size": 96, "num_attention_heads": 6, "head_dim": 16, "num_key_value_heads": 2}),
    ("llama", {"hidden_size": 36, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 2}),
    ("llama", {"hidden_size": 36, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 20}),
    ("llama", {"num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 24}),
    ("qwen3", {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}),
    ("gemma", {"hidden_act": "gelu", "head_dim": 256}),
    ("gpt2", {"activation_function": "relu", "n_inner": None}),
    ("gpt2", {"scale_attn_weights": False, "n_head": 1}),
]


def name_of(variant: object) -> str | None:
    if isinstance(variant, dict):
        return "-".join(f"{name}={value}" for name, value in variant.items())
    return variant if isinstance(variant, str) else None


def exported(student: Student, precision: str, path: Path) -> tuple[TorchDecoder, QuantizedWeights]:
    """The reference in torch, and the numbers written to ``path``."""
    graph = TorchDecoder(student, precision).eval()
    with torch.no_grad():
        weights = freeze(graph)
    export_openvino_decoder(student.anatomy, student.shape, weights, path, CONTEXT)
    return graph, weights


def torch_logits(graph: TorchDecoder, tokens: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return graph({"input_ids": torch.from_numpy(tokens[None].astype(np.int64))})["logits"][0].numpy()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("family", "options"), VARIANTS, ids=name_of)
def test_every_family_answers_as_torch_does(
    family: str, options: dict[str, Any], precision: str, make_writer: MakeWriter, tmp_path: Path
) -> None:
    student = make_writer(family, **options)
    path = tmp_path / "writer.xml"
    graph, _ = exported(student, precision, path)
    tokens = np.random.default_rng(1).integers(0, student.shape.vocabulary, CONTEXT).astype(np.int32)
    expected = torch_logits(graph, tokens)
    # How the cache is held changes nothing but attention, which is the same in all precisions.
    for paged in (None, False) if precision == "fp32" else (None,):
        session = OpenVinoDecoders(paged).open_decoder(path, DecoderOptions(threads=1))
        got = [session.prefill(tokens[:11]), session.step(int(tokens[11])), *session.verify(tokens[12:20])]
        session.rewind(5)
        got.append(session.prefill(tokens[5:]))
        session.close()
        difference = np.stack(got) - expected[[*range(10, 20), CONTEXT - 1]]
        if precision == "fp32":
            assert np.abs(difference).max() < 1e-4
        else:
            # Activations are rounded to int8 by OpenVINO in blocks, by torch in rows, and random weights are wild.
            assert difference.std() < 0.1 * expected.std()


@pytest.mark.parametrize("precision", ["w8a8-dynamic", "w4a8-dynamic"])
@pytest.mark.parametrize("family", DECODERS)
def test_a_step_gives_the_bits_of_a_verification_where_the_session_says_so(
    family: str, precision: str, make_writer: MakeWriter, tmp_path: Path
) -> None:
    student = make_writer(family)
    exported(student, precision, tmp_path / "writer.xml")
    session = OpenVinoDecoders().open_decoder(tmp_path / "writer.xml", DecoderOptions(threads=1))
    tokens = np.random.default_rng(2).integers(0, student.shape.vocabulary, CONTEXT).astype(np.int32)
    steps = np.stack([session.step(int(token)) for token in tokens])
    for start, count in ((24, 16), (20, 3), (7, 2), (0, 16)):
        session.rewind(start)
        equal = np.array_equal(session.verify(tokens[start : start + count]), steps[start : start + count])
        assert equal or not session.verifies_alike
    session.close()


@pytest.mark.parametrize("precision", ["w8a8-dynamic", "w4a8-dynamic"])
@pytest.mark.parametrize(
    ("family", "options"),
    [
        *((family, {}) for family in DECODERS),
        ("llama", {"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 2, "intermediate_size": 80}),
        ("llama", {"hidden_size": 72, "tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True}),
        ("gpt2", {"n_embd": 64, "n_head": 4}),
    ],
    ids=name_of,
)
def test_the_file_holds_the_frozen_integers_and_scales(
    family: str, options: dict[str, Any], precision: str, make_writer: MakeWriter, tmp_path: Path
) -> None:
    _, weights = exported(make_writer(family, **options), precision, tmp_path / "writer.xml")
    found = read_back(tmp_path / "writer.xml")
    rows = {
        name: each
        for name, each in (*weights.matrices.items(), *weights.tables.items())
        if isinstance(each, QuantizedMatrix | QuantizedTable)
    }
    assert found.rows.keys() == rows.keys()
    assert found.blocks.keys() == weights.blocks.keys()
    assert found.properties["precision"] == precision
    for expected, (integers, scales) in [
        *((rows[name], found.rows[name]) for name in rows),
        *((weights.blocks[name], found.blocks[name]) for name in weights.blocks),
    ]:
        assert integers.dtype == np.int8
        assert scales.dtype == np.float32
        np.testing.assert_array_equal(integers, expected.integers)
        np.testing.assert_array_equal(scales, expected.scales)


@pytest.mark.parametrize("precision", ["w8a8-dynamic", "w4a8-dynamic"])
@pytest.mark.parametrize("family", DECODERS)
def test_every_linear_layer_runs_on_stored_integers(
    family: str, precision: str, make_writer: MakeWriter, tmp_path: Path
) -> None:
    student = make_writer(family)
    _, weights = exported(student, precision, tmp_path / "writer.xml")
    report = kernel_report(tmp_path / "writer.xml")
    assert all(kernel.is_integer for kernel in report)
    assert len({kernel.site for kernel in report}) == 4 * student.shape.layers + 1
    assert {kernel.weight for kernel in report} <= ({"i8"} if precision == "w8a8-dynamic" else {"i4", "i8"})
    if precision == "w4a8-dynamic":
        assert ("i4" in {kernel.weight for kernel in report}) == bool(weights.blocks)


def test_a_float_file_reports_float_kernels(make_writer: MakeWriter, tmp_path: Path) -> None:
    exported(make_writer("llama"), "fp32", tmp_path / "writer.xml")
    report = kernel_report(tmp_path / "writer.xml")
    assert report
    assert not any(kernel.is_integer for kernel in report)
    assert {kernel.weight for kernel in report} == {"f32"}


@pytest.mark.parametrize("family", DECODERS)
def test_the_plugin_fuses_what_it_has_kernels_for(family: str, make_writer: MakeWriter, tmp_path: Path) -> None:
    student = make_writer(family)
    exported(student, "w8a8-dynamic", tmp_path / "writer.xml")
    compiled = ov.Core().compile_model(tmp_path / "writer.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    nodes = compiled.get_runtime_model().get_ordered_ops()
    kinds = Counter(str(node.get_rt_info()["layerType"].astype(str)) for node in nodes)
    layers = student.shape.layers
    assert kinds["ScaledDotProductAttention"] == layers
    assert kinds["Softmax"] == kinds["MatMul"] == 0
    if family != "gpt2":
        assert kinds["RoPE"] == 2 * layers
        assert kinds["RMS"] == (2 + 2 * (family == "qwen3")) * layers + 1
    attention = [node for node in nodes if "Attention" in str(node.get_rt_info()["layerType"].astype(str))]
    # Reads and grows the state variables by itself: nothing else stands between them.
    assert all(
        str(value.get_node().get_rt_info()["layerType"].astype(str)) != "Concatenation"
        for node in attention
        for value in node.input_values()[1:3]
    )


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_tied_table_is_stored_once(precision: str, make_writer: MakeWriter, tmp_path: Path) -> None:
    sizes = {}
    for tied in (True, False):
        student = make_writer("llama", tie_word_embeddings=tied, hidden_size=288, head_dim=16)
        exported(student, precision, tmp_path / "writer.xml")
        sizes[tied] = (tmp_path / "writer.bin").stat().st_size
    numbers = student.shape.vocabulary * 288
    bits = {"fp32": 32, "w8a8-dynamic": 8, "w4a8-dynamic": 4.5}[precision]
    assert numbers * bits / 8 == pytest.approx(sizes[False] - sizes[True], rel=0.15)


def test_equal_numbers_give_equal_files(make_writer: MakeWriter, tmp_path: Path) -> None:
    student = make_writer("llama")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        exported(student, "w4a8-dynamic", tmp_path / name / "writer.xml")
    for file in ("writer.xml", "writer.bin"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    assert sorted(file.name for file in (tmp_path / "one").iterdir()) == ["writer.bin", "writer.xml"]


def test_names_contexts_and_folders_that_cannot_be_are_refused(make_writer: MakeWriter, tmp_path: Path) -> None:
    student = make_writer("llama")
    with torch.no_grad():
        weights = freeze(TorchDecoder(student, "w8a8-dynamic"))
    shape, anatomy = student.shape, student.anatomy
    with pytest.raises(OutputError, match=r"ends in \.xml"):
        export_openvino_decoder(anatomy, shape, weights, tmp_path / "writer.onnx", CONTEXT)
    for context in (0, -3, shape.positions + 1):
        with pytest.raises(UsageError, match="context"):
            export_openvino_decoder(anatomy, shape, weights, tmp_path / "writer.xml", context)
    with pytest.raises(OutputError, match="cannot write"):
        export_openvino_decoder(anatomy, shape, weights, tmp_path / "missing" / "writer.xml", CONTEXT)
    empty = QuantizedWeights("w8a8-dynamic", {}, {}, {}, {}, {})
    with pytest.raises(StudentError, match=r"model\.embed_tokens"):
        export_openvino_decoder(anatomy, shape, empty, tmp_path / "writer.xml", CONTEXT)
    assert not list(tmp_path.iterdir())


def test_damaged_files_are_named_when_read_back(make_writer: MakeWriter, tmp_path: Path) -> None:
    path = tmp_path / "writer.xml"
    with pytest.raises(BundleError):
        read_back(path)
    exported(make_writer("llama"), "w4a8-dynamic", path)
    (tmp_path / "writer.bin").unlink()
    for read in (read_back, kernel_report):
        with pytest.raises(BundleError):
            read(path)
    path.write_bytes(b"nothing of the kind")
    for read in (read_back, kernel_report):
        with pytest.raises(BundleError):
            read(path)
