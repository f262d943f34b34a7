"""A small real bundle for ONNX Runtime, written with ONNX's own tools: a classifier that counts words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

LABELS = ("games", "net", "sound")
WORDS = {
    "games": ("chess", "puzzle", "arcade"),
    "net": ("network", "router", "packet"),
    "sound": ("audio", "music", "mixer"),
}
OTHERS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "the", "for", "and", "player", "tool", "card")
VOCABULARY = OTHERS + tuple(word for label in LABELS for word in WORDS[label])
MAX_TOKENS = 32


def word_scores() -> np.ndarray:
    """float32 ``[vocabulary, labels]``: 4 where a word speaks for a label, else 0."""
    scores = np.zeros((len(VOCABULARY), len(LABELS)), np.float32)
    for column, label in enumerate(LABELS):
        for word in WORDS[label]:
            scores[VOCABULARY.index(word), column] = 4.0
    return scores


def tokenizer_json() -> bytes:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer.to_str().encode()


def onnx_model() -> bytes:
    """Logits ``[B, labels]``: the sum of the kept tokens' scores."""
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("Gather", ["scores", "input_ids"], ["rows"]),
        helper.make_node("Cast", ["attention_mask"], ["flat_mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["flat_mask", "last"], ["mask"]),
        helper.make_node("Mul", ["rows", "mask"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "tokens"], ["logits"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "words",
        [helper.make_tensor_value_info(n, TensorProto.INT32, ["B", "T"]) for n in ("input_ids", "attention_mask")],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["B", len(LABELS)])],
        [
            numpy_helper.from_array(word_scores(), "scores"),
            numpy_helper.from_array(np.array([-1]), "last"),
            numpy_helper.from_array(np.array([1]), "tokens"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


@pytest.fixture(scope="session")
def small_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle for ONNX Runtime with the labels games, net and sound. Copy it before changing it."""
    from edgescribe.sdk.bundle_writer import pending, write_bundle
    from edgescribe.sdk.manifest import (
        ArtifactEntry,
        KnownAnswerEntry,
        Manifest,
        Provenance,
        Tensor,
        TokenizerEntry,
    )

    ids = [2, VOCABULARY.index("the"), VOCABULARY.index("router"), VOCABULARY.index("tool"), 3]
    logits = word_scores()[ids].sum(axis=0)
    artifact = ArtifactEntry(
        runtime="onnxruntime",
        precision="fp32",
        files=(pending("onnxruntime/words.onnx"),),
        inputs=tuple(Tensor(name=name, dtype="int32", shape=(None, None)) for name in ("input_ids", "attention_mask")),
        outputs=(Tensor(name="logits", dtype="float32", shape=(None, len(LABELS))),),
        known_answers=(
            KnownAnswerEntry(
                feeds={"input_ids": [ids], "attention_mask": [[1] * len(ids)]},
                outputs={"logits": [float(x) for x in logits]},
                shapes={"logits": (1, len(LABELS))},
                tolerance=1e-3,
            ),
        ),
    )
    manifest = Manifest(
        schema_version=1,
        name="words",
        family="words",
        task="classify",
        labels=LABELS,
        tokenizer=TokenizerEntry(file=pending("tokenizer.json"), max_tokens=MAX_TOKENS, pad_id=0),
        artifacts=(artifact,),
        quality={"student": {"accuracy": 1.0}, "onnxruntime/fp32": {"accuracy": 1.0}},
        provenance=Provenance(
            source="written by hand",
            source_sha256="0" * 64,
            recipe={"precision": "fp32"},
            seed=0,
            data_sha256={},
            versions={},
            created="2026-01-01T00:00:00Z",
        ),
    )
    files = {"onnxruntime/words.onnx": onnx_model(), "tokenizer.json": tokenizer_json()}
    out = tmp_path_factory.mktemp("bundles") / "words"
    write_bundle(manifest, files, out)
    return out
