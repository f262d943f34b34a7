"""A tiny student that files texts by topic, and its data: BERT of 2 layers x 32, trained on made-up texts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from fixed_vocabulary import give_wordpiece

TOPICS = {
    "games": ("chess", "puzzle", "arcade", "player", "board", "dice", "rook", "castle", "level", "score"),
    "net": ("network", "router", "packet", "socket", "daemon", "proxy", "cable", "switch", "gateway", "port"),
    "sound": ("audio", "music", "mixer", "sample", "synth", "chord", "tempo", "speaker", "volume", "drum"),
}
NEUTRAL = ("a", "the", "for", "and", "tool", "with", "fast", "small", "program", "that", "can", "read", "show", "file")


class TopicFiles(NamedTuple):
    """A checkpoint folder of the student, and data files for it (``text`` and ``label``)."""

    student: Path
    train: Path
    validation: Path
    evaluation: Path

    def arguments(self) -> dict[str, Any]:
        """As keywords of ``edgescribe.convert``."""
        return {
            "student": self.student,
            "task": "classify",
            "train": self.train,
            "validation": self.validation,
            "evaluation": self.evaluation,
        }


def topic_rows(count: int, seed: int) -> list[dict[str, str]]:
    """Rows whose texts mix a few words of one topic with neutral ones."""
    generator = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        topic = sorted(TOPICS)[number % len(TOPICS)]
        own = generator.choice(TOPICS[topic], generator.integers(1, 5))
        other = generator.choice(NEUTRAL, generator.integers(2, 14))
        rows.append({"text": " ".join(generator.permutation([*own, *other])), "label": topic})
    return rows


def topic_tokenizer(texts: list[str], size: int = 200) -> Any:
    """A WordPiece tokenizer of the texts' words and parts of words."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    give_wordpiece(tokenizer, texts, size, special, "[UNK]")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


def untrained_student(texts: list[str], layers: int = 2, hidden: int = 32, seed: int = 0) -> Any:
    """A :class:`~edgescribe.converters.student.Student` for the three topics with random weights."""
    import torch
    from edgescribe.converters.anatomy import anatomy_of
    from edgescribe.converters.student import Student

    tokenizer = topic_tokenizer(texts)
    config = {
        "model_type": "bert",
        "vocab_size": tokenizer.get_vocab_size(),
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": 4,
        "intermediate_size": 4 * hidden,
        "max_position_embeddings": 48,
        "type_vocab_size": 2,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
        "id2label": {str(number): name for number, name in enumerate(sorted(TOPICS))},
        "label2id": {name: number for number, name in enumerate(sorted(TOPICS))},
    }
    anatomy = anatomy_of("bert")
    shape = anatomy.shape(config)
    sizes = {
        "vocabulary": shape.vocabulary, "positions": shape.positions, "types": 2, "embedding": hidden,
        "hidden": hidden, "heads": hidden, "neurons": shape.neurons, "labels": len(TOPICS), "fixed": 1,
    }  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, parameter in anatomy.layout("classify", shape).items():
        measures = [sizes[role] for role in parameter.axes]
        if parameter.kind in ("norm", "bias"):
            state[name] = torch.full(measures, float(parameter.kind == "norm" and name.endswith("weight")))
        else:
            state[name] = torch.randn(measures, generator=generator) * (0.5 if parameter.kind == "table" else 0.15)
    return Student(
        config=config,
        state=state,
        tokenizer=tokenizer,
        tokenizer_config={"model_max_length": 48, "pad_token": "[PAD]", "tokenizer_class": "PreTrainedTokenizerFast"},
        task="classify",
        labels=tuple(sorted(TOPICS)),
        max_tokens=48,
        pad_id=0,
        source="topics",
        sha256="0" * 64,
    )


def make(folder: Path) -> None:
    """Train the student and write it and its data."""
    from edgescribe.converters.distillation import DistillationWeights
    from edgescribe.converters.predict import scorer
    from edgescribe.converters.torch_graph import TorchGraph
    from edgescribe.converters.training import TrainingSettings, train
    from edgescribe.converters.training_data import make_examples

    made = {"train": topic_rows(320, 1), "validation": topic_rows(60, 2), "evaluation": topic_rows(90, 3)}
    for name, rows in made.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    texts = {name: [row["text"] for row in rows] for name, rows in made.items()}
    student = untrained_student(texts["train"])
    graph = TorchGraph(student)
    examples = {
        name: make_examples(student, texts[name], [student.labels.index(row["label"]) for row in rows])
        for name, rows in made.items()
    }
    settings = TrainingSettings(epochs=12, learning_rate=3e-3, losses=DistillationWeights(labels=1.0))
    train(graph, examples["train"], settings, evaluate=scorer(examples["validation"]))
    student.with_state(graph.state()).save(folder / "student")


@pytest.fixture(scope="session")
def topic_files(made_once: Callable[[str, Callable[[Path], None]], Path]) -> TopicFiles:
    """A student that files texts by topic, and its data. Nothing of it may be changed."""
    folder = made_once("topics", make)
    return TopicFiles(folder / "student", *(folder / f"{name}.jsonl" for name in ("train", "validation", "evaluation")))
