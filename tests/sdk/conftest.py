"""Tiny real bundles: a graph that looks up a vector for each token, averages and multiplies, with a word tokenizer."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from edgescribe.sdk.bundle import Bundle, read_bundle
from edgescribe.sdk.bundle_writer import pending, replace_in_manifest, write_bundle
from edgescribe.sdk.manifest import (
    ArtifactEntry,
    KnownAnswerEntry,
    Manifest,
    Provenance,
    Tensor,
    TokenizerEntry,
)

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "kernel", "driver", "game", "chess", "paris", "linux", "in", "lives", "."]
WIDTH = 8
LABELS = {
    "classify": ("hardware", "games", "other"),
    "tag": ("O", "B-LOC", "I-LOC", "B-ORG", "I-ORG"),
    "embed": (),
}


@pytest.fixture(scope="session")
def tokenizer_json() -> bytes:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.normalizers import Lowercase
    from tokenizers.pre_tokenizers import BertPreTokenizer
    from tokenizers.processors import TemplateProcessing

    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return tokenizer.to_str().encode()


@pytest.fixture(scope="session")
def weights() -> Callable[[str], tuple[np.ndarray, np.ndarray]]:
    """Embedding table and output matrix of a task's graph."""

    def make(task: str) -> tuple[np.ndarray, np.ndarray]:
        generator = np.random.default_rng(7)
        outputs = len(LABELS[task]) or WIDTH
        table = generator.normal(size=(len(WORDS), WIDTH)).astype(np.float32)
        return table, generator.normal(size=(WIDTH, outputs)).astype(np.float32)

    return make


@pytest.fixture(scope="session")
def reference(weights: Callable[[str], tuple[np.ndarray, np.ndarray]]) -> Callable[..., np.ndarray]:
    """What the tiny graph computes, in numpy."""

    def compute(task: str, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        table, matrix = weights(task)
        x = table[ids]
        if task != "tag":
            kept = mask[..., None].astype(np.float32)
            x = (x * kept).sum(axis=1) / kept.sum(axis=1)
        return np.asarray(x @ matrix, np.float32)

    return compute


@pytest.fixture(scope="session")
def onnx_graph(weights: Callable[[str], tuple[np.ndarray, np.ndarray]]) -> Callable[[str], bytes]:
    from onnx import TensorProto, helper, numpy_helper

    def build(task: str) -> bytes:
        table, matrix = weights(task)
        output = "embedding" if task == "embed" else "logits"
        nodes = [helper.make_node("Gather", ["table", "input_ids"], ["x"])]
        if task == "tag":
            nodes += [
                # keeps the mask an input of the graph
                helper.make_node("Cast", ["attention_mask"], ["kept2"], to=TensorProto.FLOAT),
                helper.make_node("Unsqueeze", ["kept2", "last"], ["kept"]),
                helper.make_node("Mul", ["x", "kept"], ["pooled"]),
            ]
        else:
            nodes += [
                helper.make_node("Cast", ["attention_mask"], ["kept2"], to=TensorProto.FLOAT),
                helper.make_node("Unsqueeze", ["kept2", "last"], ["kept"]),
                helper.make_node("Mul", ["x", "kept"], ["masked"]),
                helper.make_node("ReduceSum", ["masked", "tokens"], ["sum"], keepdims=0),
                helper.make_node("ReduceSum", ["kept", "tokens"], ["count"], keepdims=0),
                helper.make_node("Div", ["sum", "count"], ["pooled"]),
            ]
        nodes.append(helper.make_node("MatMul", ["pooled", "matrix"], [output]))
        shape = ["batch", "tokens", matrix.shape[1]] if task == "tag" else ["batch", matrix.shape[1]]
        graph = helper.make_graph(
            nodes,
            "tiny",
            [
                helper.make_tensor_value_info(name, TensorProto.INT32, ["batch", "tokens"])
                for name in ("input_ids", "attention_mask")
            ],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)],
            [
                numpy_helper.from_array(table, "table"),
                numpy_helper.from_array(matrix, "matrix"),
                numpy_helper.from_array(np.array([2], np.int64), "last"),
                numpy_helper.from_array(np.array([1], np.int64), "tokens"),
            ],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        return bytes(model.SerializeToString())

    return build


@pytest.fixture(scope="session")
def tiny_manifest(reference: Callable[..., np.ndarray]) -> Callable[..., Manifest]:
    def make(task: str = "classify", **changes: Any) -> Manifest:
        ids = np.array([[2, 4, 5, 3], [2, 6, 3, 0]], np.int32)
        mask = np.array([[1, 1, 1, 1], [1, 1, 1, 0]], np.int32)
        answer = reference(task, ids, mask)
        if task == "tag":
            answer = answer * (mask[..., None] > 0)
        output = "embedding" if task == "embed" else "logits"
        shape = (None, None, answer.shape[-1]) if task == "tag" else (None, answer.shape[-1])
        manifest = Manifest(
            schema_version=1,
            name="tiny",
            family="bert",
            task=task,  # type: ignore[arg-type]
            labels=LABELS[task],
            tokenizer=TokenizerEntry(file=pending("tokenizer.json"), max_tokens=16, pad_id=0),
            artifacts=(
                ArtifactEntry(
                    runtime="onnxruntime",
                    precision="fp32",
                    files=(pending("onnxruntime/model.onnx"),),
                    inputs=(
                        Tensor(name="input_ids", dtype="int32", shape=(None, None)),
                        Tensor(name="attention_mask", dtype="int32", shape=(None, None)),
                    ),
                    outputs=(Tensor(name=output, dtype="float32", shape=shape),),
                    known_answers=(
                        KnownAnswerEntry(
                            feeds={"input_ids": ids.tolist(), "attention_mask": mask.tolist()},
                            outputs={output: [float(value) for value in answer.ravel()]},
                            shapes={output: answer.shape},
                            tolerance=1e-3,
                        ),
                    ),
                ),
            ),
            quality={"student": {"accuracy": 0.9}},
            provenance=Provenance(
                source="tiny",
                source_sha256="0" * 64,
                recipe={"precision": "fp32"},
                seed=1,
                data_sha256={},
                versions={},
                created="2026-01-01T00:00:00Z",
            ),
        )
        return msgspec.structs.replace(manifest, **changes)

    return make


@pytest.fixture(scope="session")
def make_bundle(
    tiny_manifest: Callable[..., Manifest], onnx_graph: Callable[[str], bytes], tokenizer_json: bytes
) -> Callable[..., Bundle]:
    """Writes a tiny bundle for a task; keyword arguments replace fields of the manifest."""

    def make(out: Path, task: str = "classify", **changes: Any) -> Bundle:
        files = {"onnxruntime/model.onnx": onnx_graph(task), "tokenizer.json": tokenizer_json}
        return write_bundle(tiny_manifest(task, **changes), files, out)

    return make


@pytest.fixture(scope="session")
def _kept_bundles(tmp_path_factory: pytest.TempPathFactory, make_bundle: Callable[..., Bundle]) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    return {task: make_bundle(folder / task, task).folder for task in LABELS}


@pytest.fixture
def bundle_of(_kept_bundles: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """A fresh copy of the tiny bundle of a task, to be altered at will."""

    def copy(task: str = "classify") -> Path:
        target = tmp_path / f"{task}-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(_kept_bundles[task], target)
        read_bundle(target)
        return target

    return copy


@pytest.fixture
def classify_folder(_kept_bundles: dict[str, Path]) -> Path:
    """The tiny classifier's bundle, not to be altered."""
    return _kept_bundles["classify"]


CONFIG = {
    "model_type": "bert",
    "vocab_size": len(WORDS),
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 16,
    "hidden_act": "gelu",
    "id2label": dict(enumerate(LABELS["classify"])),
}


def random_bert() -> Any:
    """A one-layer BERT's weights as the exporters take them."""
    from edgescribe.converters.anatomy import anatomy_of
    from edgescribe.converters.quantized_weights import FloatMatrix, QuantizedWeights

    anatomy = anatomy_of("bert")
    shape = anatomy.shape(CONFIG)
    sizes = {"vocabulary": shape.vocabulary, "positions": 16, "types": 2, "neurons": 24, "labels": shape.labels}
    draw = np.random.default_rng(5)
    found = {
        name: (0.4 * draw.normal(size=[sizes.get(axis, shape.hidden) for axis in parameter.axes])).astype(np.float32)
        for name, parameter in anatomy.parameters_of("classify", shape.layers).items()
    }
    kinds = {name: parameter.kind for name, parameter in anatomy.parameters_of("classify", shape.layers).items()}
    matrices = {
        name.removesuffix(".weight"): FloatMatrix(found[name], found[name.removesuffix("weight") + "bias"])
        for name, kind in kinds.items()
        if kind == "matrix"
    }
    tables = {name.removesuffix(".weight"): found[name] for name, kind in kinds.items() if kind == "table"}
    vectors = {name: found[name] for name, kind in kinds.items() if kind in ("norm", "vector")}
    return anatomy, shape, QuantizedWeights("fp32", matrices, tables, vectors, {}, CONFIG)


@pytest.fixture(scope="session")
def three_runtimes(
    tmp_path_factory: pytest.TempPathFactory, tiny_manifest: Callable[..., Manifest], tokenizer_json: bytes
) -> Path:
    """A one-layer BERT with random weights in a bundle for all three runtimes, made by the real exporters."""
    from edgescribe.converters.export.litert import export_litert
    from edgescribe.converters.export.onnx import export_onnx
    from edgescribe.converters.export.openvino import export_openvino
    from edgescribe.runtimes.registry import open_artifact

    folder = tmp_path_factory.mktemp("three")
    anatomy, shape, weights = random_bert()
    export_onnx(anatomy, shape, "classify", weights, folder / "model.onnx")
    export_openvino(anatomy, shape, "classify", weights, folder / "model.xml")
    export_litert(anatomy, shape, "classify", weights, folder / "model.tflite", buckets=(8, 16))
    feeds = {"input_ids": [[2, 4, 5, 3], [2, 6, 3, 0]], "attention_mask": [[1, 1, 1, 1], [1, 1, 1, 0]]}
    session = open_artifact("onnxruntime", folder / "model.onnx")
    logits = session.run({name: np.array(rows, np.int32) for name, rows in feeds.items()})["logits"]
    answer = KnownAnswerEntry(
        feeds=feeds, outputs={"logits": [float(v) for v in logits.ravel()]}, shapes={"logits": (2, 3)}, tolerance=1e-3
    )
    (plain,) = tiny_manifest().artifacts
    artifacts = [
        msgspec.structs.replace(
            plain, runtime=runtime, files=tuple(map(pending, names)), buckets=buckets, known_answers=(answer,)
        )
        for runtime, names, buckets in (
            ("onnxruntime", ["model.onnx"], ()),
            ("openvino", ["model.xml", "model.bin"], ()),
            ("litert", ["model.tflite"], (8, 16)),
        )
    ]
    names = ("model.onnx", "model.xml", "model.bin", "model.tflite")
    files: dict[str, Path | bytes] = {name: folder / name for name in names}
    return write_bundle(
        tiny_manifest(artifacts=tuple(artifacts)), {**files, "tokenizer.json": tokenizer_json}, folder / "bundle"
    ).folder


@pytest.fixture
def rewrite(tmp_path: Path) -> Callable[..., Path]:
    """Writes a bundle anew with fields of its manifest replaced."""

    def write(folder: Path, **changes: Any) -> Path:
        target = tmp_path / "rewritten"
        shutil.copytree(folder, target)
        return replace_in_manifest(read_bundle(target), **changes).folder

    return write
