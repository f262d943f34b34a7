"""Whole summarisers as OpenVINO artifacts: against the torch reference, what the files hold, what kernels run them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
import torch
from edgescribe.converters.anatomy import anatomy_of
from edgescribe.converters.export import openvino_encoder_decoder_products
from edgescribe.converters.export.openvino_encoder_decoder import (
    export_openvino_encoder_decoder,
    kernel_report,
    openvino_encoder_decoder_files,
    read_back,
)
from edgescribe.converters.freeze import freeze
from edgescribe.converters.quantized_weights import QuantizedMatrix, QuantizedTable, QuantizedWeights
from edgescribe.converters.student import Student
from edgescribe.converters.torch_decoder import graph_of
from edgescribe.errors import BundleError, OutputError, StudentError, UsageError
from edgescribe.runtimes.encoder_decoder_contract import EncoderDecoderOptions
from edgescribe.runtimes.registry import open_encoder_decoder

pytestmark = pytest.mark.slow  # many families and precisions

PRECISIONS = ("fp32", "w8a8-dynamic", "w4a8-dynamic")
SOURCE, TARGET = 50, 40
VOCABULARY = 83

Model = tuple[Any, Student]

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *(
        ("t5", {"feed_forward_proj": kind, "untied": untied})
        for kind in ("relu", "gated-gelu")
        for untied in (False, True)
    ),
    ("t5", {"num_layers": 1, "num_decoder_layers": 3, "num_heads": 3, "d_kv": 20}),
    ("t5", {"feed_forward_proj": "gated-silu", "relative_attention_num_buckets": 4, "num_decoder_layers": 1}),
    ("mt5", {"feed_forward_proj": "gated-gelu", "untied": True}),
    ("bart", {}),
    ("bart", {"untied": True, "scale_embedding": True, "activation_function": "relu"}),
    ("marian", {}),
]


def name_of(variant: object) -> str | None:
    if isinstance(variant, dict):
        return "-".join(f"{name}={value}" for name, value in variant.items()) or "plain"
    return variant if isinstance(variant, str) else None


def random_model(family: str, untied: bool = False, **options: Any) -> Model:
    """transformers' model of a tiny configuration whose every weight shows in the logits, and the student of it."""
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
    tensors = {name: tensors[name] for name in anatomy_names(family, fields)}
    return model, Student(fields, tensors, None, {}, "summarize", (), SOURCE, 0, "random", "0" * 64)


def anatomy_names(family: str, fields: dict[str, Any]) -> list[str]:
    return list(Student(fields, {}, None, {}, "summarize", (), SOURCE, 0, "random", "0" * 64).layout)


def exported(student: Student, precision: str, path: Path) -> tuple[Any, QuantizedWeights]:
    """The reference in torch, and the numbers written to ``path``."""
    graph = graph_of(student, precision).eval()
    with torch.no_grad():
        weights = freeze(graph)
    export_openvino_encoder_decoder(student.anatomy, student.shape, weights, path, SOURCE, TARGET)
    return graph, weights


def tokens_of(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(2, VOCABULARY, count).astype(np.int32)


def torch_logits(graph: Any, source: np.ndarray, target: np.ndarray) -> np.ndarray:
    feeds = {"source_ids": source, "input_ids": target}
    with torch.no_grad():
        found = graph.run({name: torch.from_numpy(ids[None].astype(np.int64)) for name, ids in feeds.items()})
    return found["logits"][0].numpy()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("family", "options"), VARIANTS, ids=name_of)
def test_every_family_answers_as_torch_does(
    family: str, options: dict[str, Any], precision: str, tmp_path: Path
) -> None:
    graph, _ = exported(random_model(family, **options)[1], precision, tmp_path / "writer.xml")
    session = open_encoder_decoder("openvino", tmp_path / "writer.xml", EncoderDecoderOptions(threads=1))
    # Sources of other lengths one after the other: shorter, longer, the longest, and one token.
    for seed, count in enumerate((33, 7, SOURCE, 1)):
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
            # Activations are rounded to int8 by OpenVINO in blocks, by torch in rows, and random weights are wild.
            assert difference.std() < 0.15 * expected.std()
    session.close()


@pytest.mark.parametrize(("family", "options"), VARIANTS, ids=name_of)
def test_the_greedy_text_is_transformers_own(family: str, options: dict[str, Any], tmp_path: Path) -> None:
    model, student = random_model(family, **options)
    exported(student, "fp32", tmp_path / "writer.xml")
    session = open_encoder_decoder("openvino", tmp_path / "writer.xml", EncoderDecoderOptions(threads=1))
    for seed in range(3):
        source = tokens_of(20 + seed, seed)
        expected = model.generate(
            input_ids=torch.from_numpy(source[None].astype(np.int64)), max_new_tokens=TARGET - 1, num_beams=1,
            do_sample=False, forced_eos_token_id=None, use_cache=False,
        )[0].tolist()  # fmt: skip
        session.read(source)
        written = [expected[0]]
        while len(written) < len(expected):
            written.append(int(session.step(written[-1]).argmax()))
        assert written == expected
    session.close()


@pytest.mark.parametrize("precision", ["w8a8-dynamic", "w4a8-dynamic"])
@pytest.mark.parametrize(("family", "options"), VARIANTS, ids=name_of)
def test_the_files_hold_the_frozen_integers_and_scales(
    family: str, options: dict[str, Any], precision: str, tmp_path: Path
) -> None:
    _, weights = exported(random_model(family, **options)[1], precision, tmp_path / "writer.xml")
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
@pytest.mark.parametrize("family", ["t5", "bart", "marian"])
def test_every_linear_layer_runs_on_stored_integers(family: str, precision: str, tmp_path: Path) -> None:
    student = random_model(family)[1]
    exported(student, precision, tmp_path / "writer.xml")
    report = kernel_report(tmp_path / "writer.xml")
    assert all(kernel.is_integer for kernel in report)
    shape = student.shape
    # Of an encoder's layer 4, of a decoder's 6 and the product that is made of the source, and the head.
    assert len({kernel.site for kernel in report}) == 4 * shape.layers + 7 * shape.decoder_layers + 1
    weights = {kernel.weight for kernel in report}
    assert weights == {"i8"} if precision == "w8a8-dynamic" else "i4" in weights


def test_large_students_leave_the_sources_integers_in_the_file_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_encoder_decoder_products, "MOST_BYTES", 1000)
    graph, _ = exported(random_model("t5")[1], "w8a8-dynamic", tmp_path / "writer.xml")
    report = kernel_report(tmp_path / "writer.xml")
    assert {kernel.weight for kernel in report} == {"i8"}
    assert not any(kernel.kernel.endswith("I8") for kernel in report)
    session = open_encoder_decoder("openvino", tmp_path / "writer.xml", EncoderDecoderOptions(threads=1))
    session.read(tokens_of(SOURCE))
    expected = torch_logits(graph, tokens_of(SOURCE), tokens_of(9, 1))
    assert (session.prefill(tokens_of(9, 1)) - expected[-1]).std() < 0.15 * expected.std()
    session.close()


def test_a_float_file_reports_float_kernels(tmp_path: Path) -> None:
    exported(random_model("t5")[1], "fp32", tmp_path / "writer.xml")
    report = kernel_report(tmp_path / "writer.xml")
    assert report
    assert {kernel.weight for kernel in report} == {"f32"}


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_a_mask_of_positions_leaves_attention_and_its_cache_one_kernel(family: str, tmp_path: Path) -> None:
    student = random_model(family)[1]
    exported(student, "w8a8-dynamic", tmp_path / "writer.xml")
    core = ov.Core()
    model = core.read_model(tmp_path / "writer.xml", tmp_path / "writer.bin")
    nodes = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}).get_runtime_model().get_ordered_ops()
    attention = [node for node in nodes if layer_type(node) == "ScaledDotProductAttention"]
    assert len(attention) == student.shape.decoder_layers
    # Each reads and grows the state variables by itself: nothing else stands between them.
    before = Counter(layer_type(value.get_node()) for node in attention for value in node.input_values())
    assert before["MemoryInput"] == 2 * len(attention)
    assert not before["Concatenation"]


def layer_type(node: Any) -> str:
    return str(node.get_rt_info()["layerType"].astype(str))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_weights_of_both_programs_are_stored_once(precision: str, tmp_path: Path) -> None:
    sizes = {}
    for untied in (False, True):
        student = random_model("t5", untied, d_model=96)[1]
        writing, reading, stored = openvino_encoder_decoder_files(tmp_path / "writer.xml")
        _, weights = exported(student, precision, writing)
        sizes[untied] = stored.stat().st_size
    bits = {"fp32": 32, "w8a8-dynamic": 8, "w4a8-dynamic": 4.5}[precision]
    table = VOCABULARY * 96 * bits / 8
    assert table == pytest.approx(sizes[True] - sizes[False], rel=0.15)
    names = (*weights.matrices, *weights.tables, *weights.blocks)
    numbers = sum(student.state[f"{name}.weight"].numel() for name in names)
    assert sizes[True] < 1.2 * numbers * bits / 8 + 16384
    assert reading.stat().st_size > 0
    assert sorted(tmp_path.iterdir()) == sorted([writing, reading, stored])


def test_equal_numbers_give_equal_files(tmp_path: Path) -> None:
    student = random_model("t5")[1]
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        exported(student, "w4a8-dynamic", tmp_path / name / "writer.xml")
    for file in openvino_encoder_decoder_files(Path("writer.xml")):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_names_contexts_and_folders_that_cannot_be_are_refused(tmp_path: Path) -> None:
    student = random_model("bart")[1]
    with torch.no_grad():
        weights = freeze(graph_of(student, "w8a8-dynamic"))
    shape, anatomy = student.shape, student.anatomy
    with pytest.raises(OutputError, match=r"ends in \.xml"):
        export_openvino_encoder_decoder(anatomy, shape, weights, tmp_path / "writer.onnx", SOURCE, TARGET)
    for contexts in ((0, TARGET), (SOURCE, 0), (SOURCE + 1, TARGET), (SOURCE, SOURCE + 1)):
        with pytest.raises(UsageError, match="context"):
            export_openvino_encoder_decoder(anatomy, shape, weights, tmp_path / "writer.xml", *contexts)
    with pytest.raises(OutputError, match="cannot write"):
        export_openvino_encoder_decoder(anatomy, shape, weights, tmp_path / "no" / "writer.xml", SOURCE, TARGET)
    empty = QuantizedWeights("w8a8-dynamic", {}, {}, {}, {}, {})
    with pytest.raises(StudentError, match="shared"):
        export_openvino_encoder_decoder(anatomy, shape, empty, tmp_path / "writer.xml", SOURCE, TARGET)
    with pytest.raises(StudentError, match="no encoder and decoder"):
        export_openvino_encoder_decoder(
            anatomy_of("llama"), shape, weights, tmp_path / "writer.xml", SOURCE, TARGET
        )
    assert not list(tmp_path.iterdir())


def test_damaged_files_are_named_when_read_back(tmp_path: Path) -> None:
    path = tmp_path / "writer.xml"
    with pytest.raises(BundleError):
        read_back(path)
    files = openvino_encoder_decoder_files(path)
    for file in files:
        exported(random_model("t5")[1], "w4a8-dynamic", path)
        file.write_bytes(b"nothing of the kind")
        for read in (read_back, kernel_report):
            with pytest.raises(BundleError):
                read(path)
        file.unlink()
        for read in (read_back, kernel_report):
            with pytest.raises(BundleError):
                read(path)
