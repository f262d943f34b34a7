"""Decoders as LiteRT files: integers read back, kernels, every family's logits, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ai_edge_litert.interpreter import Interpreter
from edgescribe.converters.anatomy import DECODERS
from edgescribe.converters.export.litert import kernel_report, undelegated_operators
from edgescribe.converters.export.litert_decoder import export_litert_decoder, read_back
from edgescribe.converters.freeze import freeze
from edgescribe.converters.quantized_weights import QuantizedMatrix, QuantizedTable, QuantizedWeights
from edgescribe.converters.student import Student
from edgescribe.converters.torch_decoder import TorchDecoder
from edgescribe.errors import BundleError, OutputError, UsageError
from edgescribe.runtimes.decoder_contract import DecoderOptions
from edgescribe.runtimes.registry import open_decoder

pytestmark = pytest.mark.slow  # many families and precisions

PRECISIONS = ("fp32", "w8a8-dynamic", "w4a8-dynamic")
CONTEXT = 40


@pytest.fixture(scope="module", autouse=True)
def one_torch_thread() -> Iterator[None]:
    """Matrices this small only wait for one another on several threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def llama(**options: Any) -> Student:
    """A Llama of grouped heads with random weights; its feed-forward width is no multiple of 32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    fields = {
        "vocab_size": 103, "hidden_size": 96, "intermediate_size": 100, "num_hidden_layers": 2,
        "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 64,
        "tie_word_embeddings": True,
    }  # fmt: skip
    config = LlamaConfig(**{**fields, **options})
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = LlamaForCausalLM(config)
    state = model.state_dict()
    if config.tie_word_embeddings:
        del state["lm_head.weight"]
    drawn = torch.Generator().manual_seed(4)
    for name, tensor in state.items():
        if name.endswith("bias"):
            tensor.copy_(torch.randn(tensor.shape, generator=drawn) * 0.1)
    told = json.loads(config.to_json_string(use_diff=False))
    return Student(told, state, None, {}, "generate", (), 64, 0, "random", "0" * 64)


def written(student: Student, precision: str, path: Path, **options: Any) -> tuple[TorchDecoder, QuantizedWeights]:
    graph = TorchDecoder(student, precision).eval()
    weights = freeze(graph)
    export_litert_decoder(student.anatomy, student.shape, weights, path, CONTEXT, **options)
    return graph, weights


@torch.no_grad()
def torch_logits(graph: TorchDecoder, ids: np.ndarray) -> np.ndarray:
    return graph.run({"input_ids": torch.from_numpy(ids[None].astype(np.int64))})["logits"][0].numpy()


@pytest.fixture(scope="module", params=PRECISIONS)
def decoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, QuantizedWeights]:
    """A file with signatures of 1, 4 and 32 tokens, and what it was made from."""
    path = tmp_path_factory.mktemp("litert") / f"{request.param}.tflite"
    return path, written(llama(attention_bias=True), request.param, path, chunks=(32, 4, 1))[1]


def test_integers_and_scales_are_read_back(decoder: tuple[Path, QuantizedWeights]) -> None:
    path, weights = decoder
    contents = read_back(path)
    rows = {name: held for name, held in weights.matrices.items() if isinstance(held, QuantizedMatrix)}
    tables = {name: held for name, held in weights.tables.items() if isinstance(held, QuantizedTable)}
    for found, expected in ((contents.rows, {**rows, **tables}), (contents.blocks, weights.blocks)):
        assert found.keys() == expected.keys()
        for name, held in expected.items():
            np.testing.assert_array_equal(found[name][0], held.integers)
            np.testing.assert_array_equal(found[name][1], held.scales)
    assert bool(contents.blocks) == (weights.precision == "w4a8-dynamic")
    assert bool(contents.rows) == (weights.precision != "fp32")


def test_weights_are_stored_once_for_all_signatures(tmp_path: Path) -> None:
    sizes = []
    for chunks in ((1,), (1, 2, 4, 8)):
        path = tmp_path / f"{len(chunks)}.tflite"
        _, weights = written(llama(hidden_size=288, intermediate_size=768), "w8a8-dynamic", path, chunks=chunks)
        sizes.append(path.stat().st_size)
    held = sum(matrix.integers.size for matrix in (*weights.matrices.values(), *weights.tables.values()))
    assert sizes[1] - sizes[0] < 0.25 * held


def test_every_linear_layer_runs_on_integers_in_xnnpack(decoder: tuple[Path, QuantizedWeights]) -> None:
    path, weights = decoder
    report = kernel_report(path)
    assert {kernel.signature for kernel in report} == {"decode_1_of_40", "decode_4_of_40", "decode_32_of_40"}
    named = {part.split("[")[0] for kernel in report for part in kernel.matrix.split("+")}
    assert named == {*weights.matrices, *(weights.blocks), "model.embed_tokens"}
    assert all(kernel.delegated for kernel in report)
    assert all(kernel.is_int8 == (weights.precision != "fp32") for kernel in report)


def test_only_looking_up_and_the_caches_are_left_to_the_engine(decoder: tuple[Path, QuantizedWeights]) -> None:
    for operators in undelegated_operators(decoder[0]).values():
        assert set(operators) == {"EMBEDDING_LOOKUP", "GATHER", "DYNAMIC_UPDATE_SLICE"}


def test_signatures_are_as_described(decoder: tuple[Path, QuantizedWeights]) -> None:
    signatures = Interpreter(model_path=str(decoder[0])).get_signature_list()
    assert list(signatures) == ["decode_1_of_40", "decode_4_of_40", "decode_32_of_40"]
    caches = {f"{part}_{layer}" for part in ("key", "value") for layer in (0, 1)}
    fed = {"tokens", "positions", "mask", "key_start", "value_start"}
    for name, signature in signatures.items():
        assert set(signature["inputs"]) == caches | fed | ({"last"} if name == "decode_32_of_40" else set())
        assert set(signature["outputs"]) == caches | {"logits"}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tie_word_embeddings": False},
        {"attention_bias": True, "mlp_bias": True},
        {"num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 288},
        {"num_key_value_heads": 6, "vocab_size": 65, "hidden_act": "gelu"},
        {"num_key_value_heads": 1, "head_dim": 10, "num_hidden_layers": 1},
        {"hidden_size": 84, "intermediate_size": 128},
    ],
)
def test_logits_are_torchs(precision: str, options: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "decoder.tflite"
    graph, _ = written(llama(**options), precision, path, chunks=(16, 17, 3))
    ids = np.random.default_rng(1).integers(0, 65, 25).astype(np.int32)
    expected = torch_logits(graph, ids)
    session = open_decoder("litert", path, DecoderOptions(threads=1))
    got = [session.prefill(ids[:20])[None], session.verify(ids[20:22]), session.step(int(ids[22]))[None]]
    got.append(session.verify(ids[23:]))
    session.close()
    off = np.abs(np.concatenate(got) - expected[19:])
    # Rounded activations round the other way here and there: logits of deviation 0.2 to 0.4 move a little.
    assert off.max() < (1e-4 if precision == "fp32" else 0.06)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("family", DECODERS)
def test_every_family_answers_as_in_torch(
    family: str, precision: str, make_writer: Callable[..., Student], tmp_path: Path
) -> None:
    student = make_writer(family)
    path = tmp_path / "decoder.tflite"
    graph, _ = written(student, precision, path, chunks=(20, 4))
    ids = np.random.default_rng(2).integers(0, student.shape.vocabulary, 30).astype(np.int32)
    expected = torch_logits(graph, ids)
    session = open_decoder("litert", path, DecoderOptions(threads=1))
    got = np.concatenate([session.prefill(ids[:24])[None], session.verify(ids[24:28]), session.verify(ids[28:])])
    session.close()
    off, deviation = np.abs(got - expected[23:]), expected.std()
    assert off.max() < (1e-4 if precision == "fp32" else 0.25 * deviation)


def test_equal_arguments_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        written(llama(), "w4a8-dynamic", tmp_path / f"{name}.tflite", chunks=(4, 1))
    assert (tmp_path / "a.tflite").read_bytes() == (tmp_path / "b.tflite").read_bytes()


def test_chunks_beyond_the_context_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "decoder.tflite"
    written(llama(), "fp32", path, chunks=(128, 8))
    assert list(Interpreter(model_path=str(path)).get_signature_list()) == ["decode_1_of_40", "decode_8_of_40"]


@pytest.mark.parametrize(("context", "chunks"), [(0, (1,)), (65, (1,)), (8, (0,)), (8, (4, -1))])
def test_what_cannot_be_is_refused(context: int, chunks: tuple[int, ...], tmp_path: Path) -> None:
    student = llama()
    weights = freeze(TorchDecoder(student, "fp32"))
    with pytest.raises(UsageError):
        export_litert_decoder(student.anatomy, student.shape, weights, tmp_path / "a.tflite", context, chunks)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(OutputError):
        written(llama(), "fp32", tmp_path / "missing" / "a.tflite", chunks=(1,))


def test_a_damaged_file_is_not_read_back(decoder: tuple[Path, QuantizedWeights], tmp_path: Path) -> None:
    content = decoder[0].read_bytes()
    for damaged in (b"", content[:1000], b"TFL3" * 100):
        path = tmp_path / "damaged.tflite"
        path.write_bytes(damaged)
        with pytest.raises(BundleError):
            read_back(path)
