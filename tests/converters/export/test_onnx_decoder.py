"""Whole writers as ONNX artifacts: against the torch reference, what the file holds, and which kernels run it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from edgescribe.converters.anatomy import DECODERS
from edgescribe.converters.export.onnx_decoder import (
    export_onnx_decoder,
    kernel_report,
    measure_cache_scales,
    read_back,
)
from edgescribe.converters.freeze import freeze
from edgescribe.converters.quantized_weights import QuantizedMatrix, QuantizedTable, QuantizedWeights
from edgescribe.converters.student import Student
from edgescribe.converters.torch_decoder import TorchDecoder
from edgescribe.errors import BundleError, InputError, OutputError, StudentError, UsageError
from edgescribe.runtimes.decoder_contract import DecoderOptions
from edgescribe.runtimes.onnxruntime_decoder import DECODER

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
"""Head widths that ONNX Runtime's attention takes with the rotary turn inside (16, 32, 256), without it (24), and not
at all (2, 20)."""


def name_of(variant: object) -> str | None:
    if isinstance(variant, dict):
        return "-".join(f"{name}={value}" for name, value in variant.items())
    return variant if isinstance(variant, str) else None


def exported(student: Student, precision: str, path: Path) -> tuple[TorchDecoder, QuantizedWeights]:
    """The reference in torch, and the numbers written to ``path``."""
    graph = TorchDecoder(student, precision).eval()
    with torch.no_grad():
        weights = freeze(graph)
    export_onnx_decoder(student.anatomy, student.shape, weights, path, CONTEXT)
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
    path = tmp_path / "writer.onnx"
    graph, _ = exported(student, precision, path)
    tokens = np.random.default_rng(1).integers(0, student.shape.vocabulary, CONTEXT).astype(np.int32)
    expected = torch_logits(graph, tokens)
    session = DECODER.open_decoder(path, DecoderOptions(threads=1))
    got = [session.prefill(tokens[:11]), session.step(int(tokens[11])), *session.verify(tokens[12:20])]
    session.rewind(5)
    got.append(session.prefill(tokens[5:]))
    session.close()
    difference = np.stack(got) - expected[[*range(10, 20), CONTEXT - 1]]
    if precision == "fp32":
        assert np.abs(difference).max() < 1e-4
    else:
        # Activations are rounded to int8 by ONNX Runtime in blocks, by torch in rows, and random weights are wild.
        assert difference.std() < 0.1 * expected.std()


@pytest.mark.parametrize("precision", ["w8a8-dynamic", "w4a8-dynamic"])
@pytest.mark.parametrize("family", DECODERS)
def test_a_step_gives_the_bits_of_a_verification(
    family: str, precision: str, make_writer: MakeWriter, tmp_path: Path
) -> None:
    student = make_writer(family)
    exported(student, precision, tmp_path / "writer.onnx")
    session = DECODER.open_decoder(tmp_path / "writer.onnx", DecoderOptions(threads=1))
    tokens = np.random.default_rng(2).integers(0, student.shape.vocabulary, CONTEXT).astype(np.int32)
    steps = np.stack([session.step(int(token)) for token in tokens])
    assert session.verifies_alike
    for start, count in ((24, 16), (20, 3), (7, 2), (0, 16)):
        session.rewind(start)
        np.testing.assert_array_equal(session.verify(tokens[start : start + count]), steps[start : start + count])
    session.verifies_alike = False
    assert not session.verifies_alike
    session.rewind(7)
    np.testing.assert_allclose(session.step(int(tokens[7])), steps[7], atol=0.1, rtol=0)
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
    _, weights = exported(make_writer(family, **options), precision, tmp_path / "writer.onnx")
    found = read_back(tmp_path / "writer.onnx")
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
        np.testing.assert_array_equal(integers, expected.integers)
        np.testing.assert_array_equal(scales, expected.scales)


@pytest.mark.parametrize("precision", ["w8a8-dynamic", "w4a8-dynamic"])
@pytest.mark.parametrize("family", DECODERS)
def test_every_linear_layer_runs_on_integers(
    family: str, precision: str, make_writer: MakeWriter, tmp_path: Path
) -> None:
    student = make_writer(family)
    _, weights = exported(student, precision, tmp_path / "writer.onnx")
    report = kernel_report(tmp_path / "writer.onnx")
    assert all(kernel.is_integer for kernel in report)
    assert len({kernel.site for kernel in report}) == 4 * student.shape.layers + 1
    assert {kernel.bits for kernel in report} <= ({8} if precision == "w8a8-dynamic" else {4, 8})
    if precision == "w4a8-dynamic":
        assert (4 in {kernel.bits for kernel in report}) == bool(weights.blocks)


def test_a_float_file_reports_float_kernels(make_writer: MakeWriter, tmp_path: Path) -> None:
    exported(make_writer("llama"), "fp32", tmp_path / "writer.onnx")
    report = kernel_report(tmp_path / "writer.onnx")
    assert report
    assert not any(kernel.is_integer for kernel in report)
    assert {kernel.bits for kernel in report} == {32}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_tied_table_is_stored_once(precision: str, make_writer: MakeWriter, tmp_path: Path) -> None:
    sizes = {}
    for tied in (True, False):
        student = make_writer("llama", tie_word_embeddings=tied, hidden_size=288, head_dim=16)
        exported(student, precision, tmp_path / "writer.onnx")
        sizes[tied] = sum(file.stat().st_size for file in tmp_path.iterdir())
    numbers = student.shape.vocabulary * 288
    bits = {"fp32": 32, "w8a8-dynamic": 8, "w4a8-dynamic": 5}[precision]
    assert numbers * bits / 8 == pytest.approx(sizes[False] - sizes[True], rel=0.15)


def test_equal_numbers_give_equal_files(make_writer: MakeWriter, tmp_path: Path) -> None:
    student = make_writer("llama")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        exported(student, "w4a8-dynamic", tmp_path / name / "writer.onnx")
    for file in ("writer.onnx", "writer.onnx.data"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    assert sorted(file.name for file in (tmp_path / "one").iterdir()) == ["writer.onnx", "writer.onnx.data"]


def test_the_graph_is_valid_onnx_of_known_operators(make_writer: MakeWriter, tmp_path: Path) -> None:
    exported(make_writer("qwen3"), "w8a8-dynamic", tmp_path / "writer.onnx")
    model = onnx.load(tmp_path / "writer.onnx")
    assert {node.domain for node in model.graph.node} <= {"", "com.microsoft"}
    names = [tensor.name for tensor in model.graph.initializer]
    assert len(names) == len(set(names))
    assert [output.name for output in model.graph.output].count("logits") == 1


def test_names_contexts_and_folders_that_cannot_be_are_refused(make_writer: MakeWriter, tmp_path: Path) -> None:
    student = make_writer("llama")
    with torch.no_grad():
        weights = freeze(TorchDecoder(student, "w8a8-dynamic"))
    shape, anatomy = student.shape, student.anatomy
    with pytest.raises(OutputError, match=r"ends in \.onnx"):
        export_onnx_decoder(anatomy, shape, weights, tmp_path / "writer.tflite", CONTEXT)
    for context in (0, -3, shape.positions + 1):
        with pytest.raises(UsageError, match="context"):
            export_onnx_decoder(anatomy, shape, weights, tmp_path / "writer.onnx", context)
    with pytest.raises(OutputError, match="cannot write"):
        export_onnx_decoder(anatomy, shape, weights, tmp_path / "missing" / "writer.onnx", CONTEXT)
    assert not list(tmp_path.iterdir())


def test_damaged_files_are_named_when_read_back(make_writer: MakeWriter, tmp_path: Path) -> None:
    path = tmp_path / "writer.onnx"
    with pytest.raises(BundleError):
        read_back(path)
    exported(make_writer("llama"), "w4a8-dynamic", path)
    (tmp_path / "writer.onnx.data").unlink()
    with pytest.raises(BundleError, match="data file"):
        read_back(path)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(BundleError):
        read_back(path)
    with pytest.raises(BundleError):
        kernel_report(path)


@pytest.mark.parametrize("precision", ["w8a8-dynamic", "w4a8-dynamic"])
def test_a_cache_of_int8_takes_a_quarter_and_answers_nearly_alike(
    precision: str, make_writer: MakeWriter, tmp_path: Path
) -> None:
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
    student = make_writer("llama", **sizes)
    _, weights = exported(student, precision, tmp_path / "float.onnx")
    random = np.random.default_rng(3)
    tokens = random.integers(0, student.shape.vocabulary, CONTEXT).astype(np.int32)
    others = [random.integers(0, student.shape.vocabulary, CONTEXT).astype(np.int32) for _ in range(4)]
    scales = measure_cache_scales(tmp_path / "float.onnx", [tokens, *others])
    assert [each.keys.shape for each in scales] == [(2, 32)] * student.shape.layers
    path = tmp_path / "integer.onnx"
    export_onnx_decoder(student.anatomy, student.shape, weights, path, CONTEXT, scales)
    four, one = (DECODER.predicted_memory(tmp_path / f"{name}.onnx").cache for name in ("float", "integer"))
    assert four == 4 * one
    plain, session = (
        DECODER.open_decoder(tmp_path / f"{name}.onnx", DecoderOptions(threads=1)) for name in ("float", "integer")
    )
    steps = np.stack([session.step(int(token)) for token in tokens])
    expected = np.stack([plain.step(int(token)) for token in tokens])
    assert (steps - expected).std() < 0.1 * expected.std()
    assert session.verifies_alike
    session.rewind(11)
    np.testing.assert_array_equal(session.verify(tokens[11:27]), steps[11:27])
    session.rewind(20)
    saved = session.save_cache()
    assert {array.dtype for array in saved.arrays.values()} == {np.dtype(np.int8)}
    fork = session.fork()
    np.testing.assert_array_equal(fork.prefill(tokens[20:]), steps[-1])
    with pytest.raises(InputError, match="instead of float32"):
        plain.load_cache(replace(saved, tokens=tokens[:20]))
    with pytest.raises(UsageError, match="int8 cache already"):
        measure_cache_scales(path, [tokens])
    with pytest.raises(UsageError, match="no texts"):
        measure_cache_scales(tmp_path / "float.onnx", [])
    for each in (plain, session, fork):
        each.close()


def test_heads_too_narrow_for_an_int8_cache_are_refused(make_writer: MakeWriter, tmp_path: Path) -> None:
    student = make_writer("llama", head_dim=8)
    _, weights = exported(student, "w8a8-dynamic", tmp_path / "writer.onnx")
    scales = measure_cache_scales(tmp_path / "writer.onnx", [np.arange(20, dtype=np.int32)])
    with pytest.raises(StudentError, match="multiple of 16"):
        export_onnx_decoder(student.anatomy, student.shape, weights, tmp_path / "narrow.onnx", CONTEXT, scales)
    assert not (tmp_path / "narrow.onnx").exists()
