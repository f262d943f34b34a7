"""Encoder-decoders on static int8 grids: one set of numbers in the three artifacts, int8 kernels, torch's logits."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import openvino as ov
import pytest
import torch
from edgescribe.converters.anatomy import anatomy_of
from edgescribe.converters.export.litert import kernel_report as litert_kernels
from edgescribe.converters.export.litert_decoder import read_back as read_litert
from edgescribe.converters.export.onnx_encoder_decoder import encoder_decoder_kernels
from edgescribe.converters.export.onnx_encoder_decoder import read_back as read_onnx
from edgescribe.converters.export.openvino_encoder_decoder import kernel_report as openvino_kernels
from edgescribe.converters.export.openvino_encoder_decoder import read_back as read_openvino
from edgescribe.converters.freeze import freeze
from edgescribe.converters.make_summarizer_bundle import export_encoder_decoder
from edgescribe.converters.quantized_weights import Grid, QuantizedMatrix, QuantizedTable, QuantizedWeights
from edgescribe.converters.student import Student
from edgescribe.converters.torch_decoder import graph_of
from edgescribe.converters.torch_graph import TorchGraph
from edgescribe.errors import StudentError
from edgescribe.runtimes.encoder_decoder_contract import EncoderDecoderOptions
from edgescribe.runtimes.registry import open_encoder_decoder

FILES = {"onnxruntime": "w.onnx", "openvino": "w.xml", "litert": "w.tflite"}
READERS: dict[str, Callable[[Path], Any]] = {
    "onnxruntime": read_onnx, "openvino": read_openvino, "litert": read_litert,
}  # fmt: skip
SOURCE, TARGET, VOCABULARY = 50, 40, 83
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "t5": ("t5", {"feed_forward_proj": "relu"}),
    "flan-t5": ("t5", {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "mt5": ("mt5", {"feed_forward_proj": "gated-gelu"}),
    "bart": ("bart", {"activation_function": "relu"}),
    "marian": ("marian", {"decoder_attention_heads": 2}),
}


class Case(NamedTuple):
    """A student's graph with started grids, its numbers, and its artifact for each runtime."""

    graph: TorchGraph
    weights: QuantizedWeights
    paths: dict[str, Path]


def student_of(family: str, **options: Any) -> Student:
    """A student of random weights, calm enough that a rounding does not become another choice of attention."""
    import transformers

    if family in ("t5", "mt5"):
        sizes = {
            "d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4,
            "relative_attention_num_buckets": 8, "relative_attention_max_distance": 20,
        }  # fmt: skip
    else:
        sizes = {
            "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
            "decoder_attention_heads": 4, "encoder_ffn_dim": 96, "decoder_ffn_dim": 64,
            "max_position_embeddings": SOURCE,
        }  # fmt: skip
    ids = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0, "vocab_size": VOCABULARY}
    config = transformers.AutoConfig.for_model(family, **{**ids, **sizes, **options})
    anatomy = anatomy_of(family)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = getattr(transformers, anatomy.architectures["summarize"])(config).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if not any(part in name for part in ("lm_head", "shared", "embed")):
                    parameter.add_(torch.randn_like(parameter) * 0.05)
    fields = json.loads(config.to_json_string(use_diff=False))
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert anatomy.settle is not None
    fields, tensors = anatomy.settle(fields, tensors)
    layout = Student(fields, {}, None, {}, "summarize", (), SOURCE, 0, "random", "0" * 64).layout
    tensors = {name: tensors[name] for name in layout}
    return Student(fields, tensors, None, {}, "summarize", (), SOURCE, 0, "random", "0" * 64)


def tokens_of(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(2, VOCABULARY, count).astype(np.int32)


def feeds_of(source: np.ndarray, target: np.ndarray) -> dict[str, torch.Tensor]:
    pairs = {"source_ids": source, "input_ids": target}
    return {name: torch.from_numpy(ids[None].astype(np.int64)) for name, ids in pairs.items()}


def calibrated(student: Student) -> tuple[TorchGraph, QuantizedWeights]:
    graph = graph_of(student, "w8a8-static").eval()
    with torch.no_grad():
        for seed in range(6):
            graph.run(feeds_of(tokens_of(SOURCE, seed), tokens_of(TARGET, seed + 10)))
        graph.start_quantizers()
    return graph, freeze(graph)


@pytest.fixture(scope="module", params=[
    pytest.param(kind, marks=() if number == 0 else pytest.mark.slow) for number, kind in enumerate(KINDS)
])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    family, options = KINDS[request.param]
    student = student_of(family, **options)
    graph, weights = calibrated(student)
    folder = tmp_path_factory.mktemp("static")
    paths = {runtime: folder / name for runtime, name in FILES.items()}
    for runtime, path in paths.items():
        export_encoder_decoder(student, runtime, weights, path, SOURCE, TARGET)
    return Case(graph, weights, paths)


def test_the_three_artifacts_hold_the_same_integers_scales_and_grids(case: Case) -> None:
    weights = case.weights
    rows = {
        name: each
        for name, each in (*weights.matrices.items(), *weights.tables.items())
        if isinstance(each, QuantizedMatrix | QuantizedTable)
    }
    assert len(rows) == len(weights.matrices) + len(weights.tables)
    for runtime, path in case.paths.items():
        found = READERS[runtime](path)
        assert set(found.rows) == set(rows), runtime
        for name, each in rows.items():
            integers, scales = found.rows[name]
            assert integers.dtype == np.int8
            np.testing.assert_array_equal(integers, each.integers, f"{runtime} {name}")
            np.testing.assert_array_equal(scales, each.scales, f"{runtime} {name}")
        assert not found.blocks
        assert set(found.sites) == set(weights.sites), runtime
        for site, grids in weights.sites.items():
            theirs = found.sites[site]
            for ours, read in ((grids.input, theirs.input), (grids.output, theirs.output)):
                assert Grid(np.float32(read.scale), read.zero_point) == Grid(np.float32(ours.scale), ours.zero_point)


def test_every_linear_layer_runs_on_int8_kernels(case: Case) -> None:
    sites = set(case.weights.sites)
    shape = case.graph.shape
    assert len(sites) == 4 * shape.layers + 7 * shape.decoder_layers + 1
    in_onnx = encoder_decoder_kernels(case.paths["onnxruntime"])
    assert {each.site for each in in_onnx} == sites
    assert {(each.kernel, each.bits) for each in in_onnx} == {("QGemm", 8)}
    in_openvino = openvino_kernels(case.paths["openvino"])
    assert {each.site for each in in_openvino} == sites
    assert all(each.weight == "i8" and each.kernel.lower().endswith("i8") for each in in_openvino), in_openvino
    in_litert = litert_kernels(case.paths["litert"])
    assert {each.site for each in in_litert} == sites
    assert {(each.operands, each.delegated) for each in in_litert} == {(("int8", "int8", "int8"), True)}


def test_sessions_give_the_logits_of_the_trained_graph(case: Case) -> None:
    step = case.weights.sites["logits"].output.scale
    for runtime, path in case.paths.items():
        with closing(open_encoder_decoder(runtime, path, EncoderDecoderOptions(threads=1))) as session:
            for seed, count in enumerate((33, 7, SOURCE, 1, 16)):
                source, target = tokens_of(count, seed + 50), tokens_of(TARGET, seed + 60)
                with torch.no_grad():
                    expected = case.graph.run(feeds_of(source, target))["logits"][0].numpy()
                session.read(source)
                got = [session.prefill(target[:11]), session.step(int(target[11])), *session.verify(target[12:20])]
                session.rewind(5)
                got.append(session.prefill(target[5:]))
                off = np.stack(got) - expected[[*range(10, 20), TARGET - 1]]
                # Sums at the edge between two steps of a grid fall on either; a few such are seen in the logits.
                assert np.abs(off).max() <= 6 * step, (runtime, count, np.abs(off).max() / step)
                assert np.abs(off).mean() <= step, (runtime, count, np.abs(off).mean() / step)


def test_a_static_step_gives_the_bits_of_a_verification(case: Case) -> None:
    target = tokens_of(TARGET, 2)
    for runtime, path in case.paths.items():
        with closing(open_encoder_decoder(runtime, path, EncoderDecoderOptions(threads=1))) as session:
            assert session.verifies_alike, runtime
            session.read(tokens_of(SOURCE, 3))
            steps = np.stack([session.step(int(token)) for token in target[:16]])
            session.rewind(4)
            np.testing.assert_array_equal(session.verify(target[4:12]), steps[4:12])


def test_openvino_keeps_attention_and_its_cache_one_kernel(case: Case) -> None:
    path = case.paths["openvino"]
    core = ov.Core()
    model = core.compile_model(core.read_model(path, path.with_suffix(".bin")), "CPU", {"KV_CACHE_PRECISION": "f32"})
    nodes = model.get_runtime_model().get_ordered_ops()
    attention = [node for node in nodes if _layer_type(node) == "ScaledDotProductAttention"]
    assert len(attention) == case.graph.shape.decoder_layers
    before = Counter(_layer_type(value.get_node()) for node in attention for value in node.input_values())
    assert before["MemoryInput"] == 2 * len(attention)


def _layer_type(node: Any) -> str:
    return str(node.get_rt_info()["layerType"].astype(str))


def test_onnx_graphs_load_where_quick_products_saturate(case: Case) -> None:
    """Processors without VNNI get exact kernels by an option, which rewrites the constants."""
    path = case.paths["onnxruntime"]
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    for name in (path.name, "w.source.onnx", "w.kept.onnx"):
        assert onnxruntime.InferenceSession(str(path.with_name(name)), options, providers=["CPUExecutionProvider"])


def test_a_table_that_both_halves_and_the_head_read_is_stored_once(tmp_path: Path) -> None:
    student = student_of("t5", vocab_size=6000)
    _, weights = calibrated(student)
    for runtime, name in FILES.items():
        folder = tmp_path / runtime
        folder.mkdir()
        export_encoder_decoder(student, runtime, weights, folder / name, SOURCE, TARGET)
        size = sum(file.stat().st_size for file in folder.iterdir())
        assert size < 1.5 * 6000 * 68 + 400_000, runtime


@pytest.mark.parametrize("runtime", FILES)
def test_a_layer_without_grids_is_refused(runtime: str, case: Case, tmp_path: Path) -> None:
    weights = case.weights
    sites = {site: grids for site, grids in weights.sites.items() if site != "decoder.1.cross_query"}
    left = QuantizedWeights(weights.precision, weights.matrices, weights.tables, weights.vectors, sites, weights.config)
    with pytest.raises(StudentError, match="activation grids"):
        export_encoder_decoder(case.graph.student, runtime, left, tmp_path / FILES[runtime], SOURCE, TARGET)
    assert list(tmp_path.iterdir()) == []
