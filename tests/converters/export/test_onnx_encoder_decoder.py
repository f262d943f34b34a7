"""Whole summarisers as ONNX artifacts: against the torch reference, what the files hold, and which kernels run them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from edgescribe.converters.anatomy import anatomy_of
from edgescribe.converters.encoder_decoder_graph import RelativeBias
from edgescribe.converters.export.onnx_encoder_decoder import (
    encoder_decoder_kernels,
    export_onnx_encoder_decoder,
    read_back,
)
from edgescribe.converters.export.onnx_encoder_decoder_source import STRIP, strips_of
from edgescribe.converters.freeze import freeze
from edgescribe.converters.quantized_weights import QuantizedMatrix, QuantizedTable, QuantizedWeights
from edgescribe.converters.student import Student
from edgescribe.converters.torch_decoder import graph_of
from edgescribe.errors import BundleError, OutputError, StudentError, UsageError
from edgescribe.runtimes.encoder_decoder_contract import EncoderDecoderOptions, EncoderDecoderSession
from edgescribe.runtimes.registry import open_encoder_decoder
from hypothesis import given
from hypothesis import strategies as st

PRECISIONS = ("fp32", "w8a8-dynamic", "w4a8-dynamic")
ROUNDED = ("w8a8-dynamic", "w4a8-dynamic")
SOURCE, TARGET = 50, 40
VOCABULARY = 83
FILES = ["writer.kept.onnx", "writer.onnx", "writer.onnx.data", "writer.source.onnx"]

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *(
        ("t5", {"feed_forward_proj": kind, "untied": untied})
        for kind in ("relu", "gated-gelu")
        for untied in (False, True)
    ),
    ("t5", {"num_layers": 1, "num_decoder_layers": 3, "num_heads": 3, "d_kv": 20}),
    ("t5", {"num_heads": 1, "d_kv": 10, "d_model": 72, "d_ff": 70}),
    ("t5", {"feed_forward_proj": "gated-silu", "relative_attention_num_buckets": 4, "num_decoder_layers": 1}),
    ("mt5", {"feed_forward_proj": "gated-gelu", "untied": True}),
    ("bart", {}),
    ("bart", {"untied": True, "scale_embedding": True, "activation_function": "relu"}),
    ("marian", {}),
    ("marian", {"d_model": 60, "encoder_attention_heads": 5, "decoder_attention_heads": 3}),
]
EACH_KIND = [VARIANTS[0], VARIANTS[3], VARIANTS[5], VARIANTS[8], VARIANTS[10]]


def name_of(variant: object) -> str | None:
    if isinstance(variant, dict):
        return "-".join(f"{name}={value}" for name, value in variant.items()) or "plain"
    return variant if isinstance(variant, str) else None


def student_of(family: str, untied: bool = False, **options: Any) -> tuple[Student, Any]:
    """A student of a tiny configuration whose every weight shows in the logits, and transformers' model of it."""
    import transformers

    if family in ("t5", "mt5"):
        sizes = {
            "d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4,
            "relative_attention_num_buckets": 8, "relative_attention_max_distance": 20,
        }  # fmt: skip
    else:
        sizes = {
            "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
            "decoder_attention_heads": 2, "encoder_ffn_dim": 96, "decoder_ffn_dim": 64,
            "max_position_embeddings": SOURCE,
        }  # fmt: skip
    ids = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0, "vocab_size": VOCABULARY}
    config = transformers.AutoConfig.for_model(family, **{**ids, **sizes, **options})
    anatomy = anatomy_of(family)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = getattr(transformers, anatomy.architectures["summarize"])(config).eval()
        if untied:
            model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "relative" in name:
                    parameter.normal_()
                elif not any(part in name for part in ("lm_head", "shared", "embed")):
                    parameter.add_(torch.randn_like(parameter) * 0.1)
    fields = json.loads(config.to_json_string(use_diff=False))
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert anatomy.settle is not None
    fields, tensors = anatomy.settle(fields, tensors)
    layout = Student(fields, {}, None, {}, "summarize", (), SOURCE, 0, "random", "0" * 64).layout
    tensors = {name: tensors[name] for name in layout}
    return Student(fields, tensors, None, {}, "summarize", (), SOURCE, 0, "random", "0" * 64), model


def exported(student: Student, precision: str, path: Path) -> tuple[Any, QuantizedWeights]:
    """The reference in torch, and the numbers written to ``path``."""
    graph = graph_of(student, precision).eval()
    with torch.no_grad():
        weights = freeze(graph)
    export_onnx_encoder_decoder(student.anatomy, student.shape, weights, path, SOURCE, TARGET)
    return graph, weights


def opened(path: Path, **options: Any) -> EncoderDecoderSession:
    return open_encoder_decoder("onnxruntime", path, EncoderDecoderOptions(**{"threads": 1, **options}))


def tokens_of(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(2, VOCABULARY, count).astype(np.int32)


def torch_logits(graph: Any, source: np.ndarray, target: np.ndarray) -> np.ndarray:
    feeds = {"source_ids": source, "input_ids": target}
    with torch.no_grad():
        found = graph.run({name: torch.from_numpy(ids[None].astype(np.int64)) for name, ids in feeds.items()})
    return found["logits"][0].numpy()


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("family", "options"), VARIANTS, ids=name_of)
def test_every_family_answers_as_torch_does(
    family: str, options: dict[str, Any], precision: str, tmp_path: Path
) -> None:
    graph, _ = exported(student_of(family, **options)[0], precision, tmp_path / "writer.onnx")
    session = opened(tmp_path / "writer.onnx")
    # Sources one after the other: shorter and longer ones, the longest, one token, and borders of strips of 16.
    for seed, count in enumerate((33, 7, SOURCE, 1, 16, 32)):
        source, target = tokens_of(count, seed), tokens_of(TARGET, seed + 10)
        expected = torch_logits(graph, source, target)
        session.read(source)
        got = [session.prefill(target[:11]), session.step(int(target[11])), *session.verify(target[12:20])]
        session.rewind(5)
        got.append(session.prefill(target[5:]))
        difference = np.stack(got) - expected[[*range(10, 20), TARGET - 1]]
        if precision == "fp32":
            assert np.abs(difference).max() < 1e-5 * max(10, np.abs(expected).max())
        else:
            # Activations are rounded to int8 by ONNX Runtime in blocks, by torch in rows, and random weights are wild.
            assert difference.std() < 0.15 * expected.std()
    session.close()


@pytest.mark.parametrize(("family", "options"), EACH_KIND, ids=name_of)
def test_greedy_text_is_that_of_transformers(family: str, options: dict[str, Any], tmp_path: Path) -> None:
    student, model = student_of(family, **options)
    exported(student, "fp32", tmp_path / "writer.onnx")
    session = opened(tmp_path / "writer.onnx")
    for seed in range(3):
        source = tokens_of(9 + 20 * seed, seed)
        with torch.no_grad():
            written = model.generate(
                torch.from_numpy(source[None].astype(np.int64)), do_sample=False, num_beams=1, min_new_tokens=20,
                max_new_tokens=20, bad_words_ids=None, forced_bos_token_id=None, forced_eos_token_id=None,
                eos_token_id=None, pad_token_id=0,
            )[0].tolist()  # fmt: skip
        session.read(source)
        got = [0]
        for _ in range(20):
            got.append(int(session.step(got[-1]).argmax()))
        assert got == written
    session.close()


@pytest.mark.slow
@pytest.mark.parametrize("precision", ROUNDED)
@pytest.mark.parametrize(("family", "options"), [VARIANTS[3], VARIANTS[4], VARIANTS[8], VARIANTS[10]], ids=name_of)
def test_a_step_gives_the_bits_of_a_verification(
    family: str, options: dict[str, Any], precision: str, tmp_path: Path
) -> None:
    exported(student_of(family, **options)[0], precision, tmp_path / "writer.onnx")
    for threads in (1, 2):
        session = opened(tmp_path / "writer.onnx", threads=threads)
        assert session.verifies_alike
        target = tokens_of(TARGET, 2)
        for count in (SOURCE, 3):
            session.read(tokens_of(count))
            steps = np.stack([session.step(int(token)) for token in target])
            for start, many in ((24, 16), (20, 3), (7, 2), (0, 16)):
                session.rewind(start)
                np.testing.assert_array_equal(session.verify(target[start : start + many]), steps[start : start + many])
        session.verifies_alike = False
        session.rewind(7)
        np.testing.assert_allclose(session.step(int(target[7])), steps[7], atol=0.1, rtol=0)
        session.close()


@pytest.mark.parametrize("precision", ROUNDED)
@pytest.mark.parametrize(("family", "options"), EACH_KIND, ids=name_of)
def test_the_files_hold_the_frozen_integers_and_scales(
    family: str, options: dict[str, Any], precision: str, tmp_path: Path
) -> None:
    _, weights = exported(student_of(family, **options)[0], precision, tmp_path / "writer.onnx")
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


@pytest.mark.parametrize("precision", ROUNDED)
@pytest.mark.parametrize(("family", "options"), EACH_KIND, ids=name_of)
def test_every_linear_layer_runs_on_integers(
    family: str, options: dict[str, Any], precision: str, tmp_path: Path
) -> None:
    student, _ = student_of(family, **options)
    _, weights = exported(student, precision, tmp_path / "writer.onnx")
    report = encoder_decoder_kernels(tmp_path / "writer.onnx")
    assert all(kernel.is_integer for kernel in report)
    shape = student.shape
    sites = {kernel.site for kernel in report}
    assert len(sites) == 4 * shape.layers + 7 * shape.decoder_layers + 1
    assert {kernel.bits for kernel in report} <= ({8} if precision == "w8a8-dynamic" else {4, 8})
    assert (4 in {kernel.bits for kernel in report}) == bool(weights.blocks)


def test_a_float_file_reports_float_kernels(tmp_path: Path) -> None:
    exported(student_of("t5")[0], "fp32", tmp_path / "writer.onnx")
    report = encoder_decoder_kernels(tmp_path / "writer.onnx")
    assert report
    assert {(kernel.is_integer, kernel.bits) for kernel in report} == {(False, 32)}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_table_that_both_halves_read_is_stored_once(precision: str, tmp_path: Path) -> None:
    sizes = {}
    for untied in (False, True):
        student, _ = student_of("t5", vocab_size=6000, untied=untied)
        exported(student, precision, tmp_path / "writer.onnx")
        sizes[untied] = sum(file.stat().st_size for file in tmp_path.iterdir())
    bits = {"fp32": 32, "w8a8-dynamic": 8.5, "w4a8-dynamic": 5}[precision]
    table = 6000 * 64 * bits / 8
    assert sizes[True] - sizes[False] == pytest.approx(table, rel=0.1)
    layers = sum(tensor.numel() for name, tensor in student.state.items() if "block" in name) * bits / 8
    nodes = 130_000
    assert sizes[False] < table + layers + nodes < 2 * table + layers


def test_equal_numbers_give_equal_files(tmp_path: Path) -> None:
    student, _ = student_of("t5")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        exported(student, "w4a8-dynamic", tmp_path / name / "writer.onnx")
        assert sorted(file.name for file in (tmp_path / name).iterdir()) == FILES
    for file in FILES:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_the_graphs_are_valid_onnx_of_known_operators(family: str, tmp_path: Path) -> None:
    exported(student_of(family)[0], "w8a8-dynamic", tmp_path / "writer.onnx")
    kept = [f"source.{layer}.{part}" for layer in range(2) for part in ("key", "value")]
    for file, outputs in (("writer.source.onnx", ["states"]), ("writer.kept.onnx", kept), ("writer.onnx", None)):
        model = onnx.load(tmp_path / file)
        assert {node.domain for node in model.graph.node} <= {"", "com.microsoft"}
        names = [tensor.name for tensor in model.graph.initializer]
        assert len(names) == len(set(names))
        assert outputs is None or [output.name for output in model.graph.output] == outputs


@given(
    buckets=st.integers(2, 40).map(lambda half: 2 * half), more=st.integers(1, 60), heads=st.integers(1, 3),
    tokens=st.integers(1, 300),
)  # fmt: skip
def test_strips_put_together_are_the_relative_positions(buckets: int, more: int, heads: int, tokens: int) -> None:
    relative = RelativeBias("table", buckets, buckets // 2 + more, bidirectional=True)
    table = np.random.default_rng(0).normal(size=(buckets, heads)).astype(np.float32)
    first, strips = strips_of(table, relative)
    begins = np.arange(0, tokens, STRIP)[None] - np.arange(tokens)[:, None]
    places = np.clip(begins - first, 0, strips.shape[1] - 1)
    got = strips[:, places].reshape(heads, tokens, -1)[:, :, :tokens]
    offsets = np.arange(tokens)[None] - np.arange(tokens)[:, None]
    np.testing.assert_array_equal(got, table[relative.bucket_of(offsets)].transpose(2, 0, 1))


def test_names_contexts_and_students_that_cannot_be_are_refused(tmp_path: Path) -> None:
    student, _ = student_of("bart")
    with torch.no_grad():
        weights = freeze(graph_of(student, "w8a8-dynamic"))
    shape, anatomy = student.shape, student.anatomy
    path = tmp_path / "writer.onnx"
    with pytest.raises(OutputError, match=r"ends in \.onnx"):
        export_onnx_encoder_decoder(anatomy, shape, weights, tmp_path / "writer.tflite", SOURCE, TARGET)
    for wrong in (0, -3, shape.positions + 1):
        with pytest.raises(UsageError, match="source of"):
            export_onnx_encoder_decoder(anatomy, shape, weights, path, wrong, TARGET)
        with pytest.raises(UsageError, match="target of"):
            export_onnx_encoder_decoder(anatomy, shape, weights, path, SOURCE, wrong)
    with pytest.raises(OutputError, match="cannot write"):
        export_onnx_encoder_decoder(anatomy, shape, weights, tmp_path / "missing" / "w.onnx", SOURCE, TARGET)
    with pytest.raises(StudentError, match="no encoder and decoder"):
        export_onnx_encoder_decoder(anatomy_of("llama"), shape, weights, path, SOURCE, TARGET)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("file", FILES)
def test_damaged_files_are_named_when_read_back(file: str, tmp_path: Path) -> None:
    path = tmp_path / "writer.onnx"
    with pytest.raises(BundleError):
        read_back(path)
    exported(student_of("t5")[0], "w4a8-dynamic", path)
    if file.endswith(".onnx"):
        (tmp_path / file).write_bytes(b"nothing of the kind")
        with pytest.raises(BundleError, match=file):
            read_back(path)
    (tmp_path / file).unlink()
    with pytest.raises(BundleError, match="writer"):
        read_back(path)
