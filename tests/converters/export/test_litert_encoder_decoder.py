"""Encoder-decoders as LiteRT files: every family's logits and texts, what a file holds, and what kernels run it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ai_edge_litert.interpreter import Interpreter
from edgescribe.converters.anatomy import anatomy_of
from edgescribe.converters.export.litert import kernel_report, undelegated_operators
from edgescribe.converters.export.litert_decoder import read_back
from edgescribe.converters.export.litert_encoder_decoder import export_litert_encoder_decoder
from edgescribe.converters.freeze import freeze
from edgescribe.converters.quantized_weights import QuantizedMatrix, QuantizedTable, QuantizedWeights
from edgescribe.converters.student import Student
from edgescribe.converters.torch_decoder import graph_of
from edgescribe.errors import BundleError, OutputError, StudentError, UsageError
from edgescribe.runtimes.encoder_decoder_contract import EncoderDecoderOptions
from edgescribe.runtimes.registry import open_encoder_decoder

pytestmark = pytest.mark.slow  # many families and precisions

PRECISIONS = ("fp32", "w8a8-dynamic", "w4a8-dynamic")
SOURCE, TARGET = 130, 40
VOCABULARY = 83

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *(
        ("t5", {"feed_forward_proj": kind, "untied": untied})
        for kind in ("relu", "gated-gelu")
        for untied in (False, True)
    ),
    ("t5", {"num_layers": 1, "num_decoder_layers": 3, "num_heads": 3, "d_kv": 20}),
    ("t5", {"num_heads": 5, "d_ff": 70, "relative_attention_num_buckets": 4, "num_decoder_layers": 1}),
    ("mt5", {"feed_forward_proj": "gated-gelu", "untied": True}),
    ("bart", {}),
    ("bart", {"untied": True, "scale_embedding": True, "activation_function": "relu"}),
    ("marian", {"encoder_attention_heads": 2}),
]


@pytest.fixture(scope="module", autouse=True)
def one_torch_thread() -> Iterator[None]:
    """Matrices this small only wait for one another on several threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def name_of(variant: object) -> str | None:
    if isinstance(variant, dict):
        return "-".join(f"{name}={value}" for name, value in variant.items()) or "plain"
    return variant if isinstance(variant, str) else None


def random_model(family: str, untied: bool = False, **options: Any) -> tuple[Any, Student]:
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
                    parameter.add_(torch.randn_like(parameter) * 0.05)
            if hasattr(model, "final_logits_bias"):
                model.final_logits_bias.normal_()
    assert anatomy.settle is not None
    fields, tensors = anatomy.settle(
        json.loads(config.to_json_string(use_diff=False)),
        {name: tensor.clone() for name, tensor in model.state_dict().items()},
    )
    layout = Student(fields, {}, None, {}, "summarize", (), SOURCE, 0, "random", "0" * 64).layout
    held = {name: tensors[name] for name in layout}
    return model, Student(fields, held, None, {}, "summarize", (), SOURCE, 0, "random", "0" * 64)


def written(student: Student, precision: str, path: Path, **options: Any) -> tuple[Any, QuantizedWeights]:
    """The reference in torch, and the numbers written to ``path``."""
    graph = graph_of(student, precision).eval()
    with torch.no_grad():
        weights = freeze(graph)
    export_litert_encoder_decoder(student.anatomy, student.shape, weights, path, SOURCE, TARGET, **options)
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
    """Sources of as many tokens as there is room for, one more and one less, one after the other."""
    path = tmp_path / "writer.tflite"
    graph, _ = written(random_model(family, **options)[1], precision, path)
    session = open_encoder_decoder("litert", path, EncoderDecoderOptions(threads=1))
    for seed, count in enumerate((65, 1, 64, SOURCE, 128, 63, 17)):
        source, target = tokens_of(count, seed), tokens_of(TARGET, seed + 10)
        expected = torch_logits(graph, source, target)
        session.read(source)
        got = [session.prefill(target[:11]), session.step(int(target[11])), *session.verify(target[12:20])]
        session.rewind(5)
        got.append(session.prefill(target[5:]))
        off = np.stack(got) - expected[[*range(10, 20), TARGET - 1]]
        if precision == "fp32":
            assert np.abs(off).max() < 1e-5 * max(10, np.abs(expected).max())
        else:
            # Rounded activations round the other way here and there, and random weights are wild.
            assert off.std() < 0.15 * expected.std()
    session.close()


@pytest.mark.parametrize(("family", "options"), VARIANTS, ids=name_of)
def test_the_greedy_text_is_transformers_own(family: str, options: dict[str, Any], tmp_path: Path) -> None:
    model, student = random_model(family, **options)
    written(student, "fp32", tmp_path / "writer.tflite")
    session = open_encoder_decoder("litert", tmp_path / "writer.tflite", EncoderDecoderOptions(threads=1))
    for seed, count in enumerate((20, 64, 90)):
        source = tokens_of(count, seed)
        expected = model.generate(
            input_ids=torch.from_numpy(source[None].astype(np.int64)), max_new_tokens=TARGET - 1, num_beams=1,
            do_sample=False, forced_eos_token_id=None, use_cache=False,
        )[0].tolist()  # fmt: skip
        session.read(source)
        text = [expected[0]]
        while len(text) < len(expected):
            text.append(int(session.step(text[-1]).argmax()))
        assert text == expected
    session.close()


@pytest.mark.parametrize("precision", ["w8a8-dynamic", "w4a8-dynamic"])
@pytest.mark.parametrize(("family", "options"), VARIANTS, ids=name_of)
def test_integers_and_scales_are_read_back(
    family: str, options: dict[str, Any], precision: str, tmp_path: Path
) -> None:
    path = tmp_path / "writer.tflite"
    _, weights = written(random_model(family, **options)[1], precision, path)
    contents = read_back(path)
    rows = {
        name: held
        for name, held in (*weights.matrices.items(), *weights.tables.items())
        if isinstance(held, QuantizedMatrix | QuantizedTable)
    }
    for found, expected in ((contents.rows, rows), (contents.blocks, weights.blocks)):
        assert found.keys() == expected.keys()
        for name, held in expected.items():
            np.testing.assert_array_equal(found[name][0], held.integers)
            np.testing.assert_array_equal(found[name][1], held.scales)
    assert bool(contents.blocks) == (precision == "w4a8-dynamic")


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("family", ["t5", "bart"])
def test_every_linear_layer_runs_on_integers_in_xnnpack(family: str, precision: str, tmp_path: Path) -> None:
    path = tmp_path / "writer.tflite"
    _, weights = written(random_model(family)[1], precision, path)
    report = kernel_report(path)
    assert {kernel.signature for kernel in report} == {"encode_of_130", "decode_1_of_40", "decode_8_of_40"}
    named = {part.split("[")[0] for kernel in report for part in kernel.matrix.split("+")}
    assert named >= {*weights.matrices, *(name for name in weights.blocks if "embed" not in name)}
    assert all(kernel.delegated for kernel in report)
    assert all(kernel.is_int8 == (precision != "fp32") for kernel in report)
    left = undelegated_operators(path)
    assert set(left.pop("encode_of_130")) <= {"EMBEDDING_LOOKUP", "GATHER", "ADD"}
    for operators in left.values():
        assert set(operators) <= {"EMBEDDING_LOOKUP", "GATHER", "ADD", "DYNAMIC_UPDATE_SLICE"}
        assert operators.count("DYNAMIC_UPDATE_SLICE") == 2 * 2


@pytest.mark.parametrize("precision", ["w8a8-dynamic", "w4a8-dynamic"])
def test_weights_are_stored_once_for_both_halves_and_the_head(precision: str, tmp_path: Path) -> None:
    sizes = []
    sizes_of = {"vocab_size": 3000, "d_model": 256, "d_ff": 512, "num_heads": 8, "d_kv": 32}
    for chunks in ((1,), (1, 2, 8)):
        path = tmp_path / f"{len(chunks)}.tflite"
        _, weights = written(random_model("t5", **sizes_of)[1], precision, path, chunks=chunks)
        sizes.append(path.stat().st_size)
    held = sum(each.integers.size for each in (*weights.matrices.values(), *weights.tables.values()))
    held += sum(each.integers.size // 2 + 2 * each.scales.size for each in weights.blocks.values())
    assert sizes[0] < held * 1.05 + 100_000
    assert sizes[1] - sizes[0] < 100_000


def test_relative_positions_take_little_room(tmp_path: Path) -> None:
    """No table of all pairs of tokens is in the file."""
    student = random_model("t5", num_heads=8, d_kv=8)[1]
    weights = freeze(graph_of(student, "w8a8-dynamic"))
    for context in (64, 2048):
        export_litert_encoder_decoder(
            student.anatomy, student.shape, weights, tmp_path / f"{context}.tflite", context, 64
        )
    small, large = ((tmp_path / f"{context}.tflite").stat().st_size for context in (64, 2048))
    assert large - small < 8 * 2 * 2048 * 4 + 1000


def test_signatures_are_as_described(tmp_path: Path) -> None:
    source = {f"source_{part}_{layer}" for part in ("key", "value") for layer in (0, 1)}
    caches = {f"{part}_{layer}" for part in ("key", "value") for layer in (0, 1)}
    fed = {
        "t5": ({"source_tokens", "offsets"}, {"tokens", "distances"}),
        "bart": ({"source_tokens", "source_positions", "source_mask"}, {"tokens", "positions", "mask"}),
    }
    for family, (encoder, decoder) in fed.items():
        path = tmp_path / f"{family}.tflite"
        written(random_model(family)[1], "fp32", path, chunks=(4, 64))
        signatures = Interpreter(model_path=str(path)).get_signature_list()
        assert list(signatures) == ["encode_of_130", "decode_1_of_40", "decode_4_of_40"]
        reading = signatures.pop("encode_of_130")
        assert (set(reading["inputs"]), set(reading["outputs"])) == (encoder, source)
        for signature in signatures.values():
            small = decoder | {"key_start", "value_start", "source_mask"}
            assert set(signature["inputs"]) == caches | source | small
            assert set(signature["outputs"]) == caches | {"logits"}


def test_equal_arguments_give_equal_bytes(tmp_path: Path) -> None:
    student = random_model("t5")[1]
    for name in ("a", "b"):
        written(student, "w4a8-dynamic", tmp_path / f"{name}.tflite")
    assert (tmp_path / "a.tflite").read_bytes() == (tmp_path / "b.tflite").read_bytes()


@pytest.mark.parametrize(("source", "target", "chunks"), [(0, 8, (1,)), (8, 0, (1,)), (8, 8, (0,)), (8, 8, (4, -1))])
def test_what_cannot_be_is_refused(source: int, target: int, chunks: tuple[int, ...], tmp_path: Path) -> None:
    student = random_model("t5")[1]
    weights = freeze(graph_of(student))
    with pytest.raises(UsageError):
        export_litert_encoder_decoder(
            student.anatomy, student.shape, weights, tmp_path / "a.tflite", source, target, chunks
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("family", ["bart", "marian"])
@pytest.mark.parametrize(("source", "target"), [(SOURCE + 1, 8), (8, SOURCE + 1)])
def test_texts_beyond_the_positions_are_refused(family: str, source: int, target: int, tmp_path: Path) -> None:
    student = random_model(family)[1]
    weights = freeze(graph_of(student))
    with pytest.raises(UsageError, match="positions"):
        export_litert_encoder_decoder(student.anatomy, student.shape, weights, tmp_path / "a.tflite", source, target)


def test_a_student_that_is_no_encoder_decoder_is_refused(tmp_path: Path) -> None:
    student = random_model("t5")[1]
    with pytest.raises(StudentError, match="llama"):
        export_litert_encoder_decoder(
            anatomy_of("llama"), student.shape, freeze(graph_of(student)), tmp_path / "a.tflite", 8, 8
        )


def test_a_folder_that_is_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(OutputError):
        written(random_model("t5")[1], "fp32", tmp_path / "missing" / "a.tflite")


def test_a_damaged_file_is_not_read_back(tmp_path: Path) -> None:
    path = tmp_path / "writer.tflite"
    written(random_model("t5")[1], "w8a8-dynamic", path)
    content = path.read_bytes()
    for damaged in (b"", content[:1000], b"TFL3" * 100):
        path.write_bytes(damaged)
        with pytest.raises(BundleError):
            read_back(path)
