"""For tests of whole commands: a small real bundle made with ONNX's own tools, and a tiny student with its data."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

LABELS = ("games", "net", "sound")
WORDS = {
    "games": ("chess", "puzzle", "arcade"),
    "net": ("network", "router", "packet"),
    "sound": ("audio", "music", "mixer"),
}
OTHERS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "the", "for", "and", "player", "tool", "card")
VOCABULARY = OTHERS + tuple(word for label in LABELS for word in WORDS[label])
MAX_TOKENS = 32


class RootIsAFolder:
    """Keeps pytest from importing the checkout's root, which is the package edgescribe, by the folder's name.

    A checkout may have any name, one with a dash too, and such a package cannot be imported.
    """

    @pytest.hookimpl(tryfirst=True)
    def pytest_collect_directory(self, path: Path, parent: pytest.Collector) -> pytest.Collector | None:
        return pytest.Dir.from_parent(parent, path=path) if path == Path(__file__).parents[1] else None


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(RootIsAFolder())
    # What a busy machine takes for an example says nothing of the program.
    settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("unhurried")


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


# A tiny student for whole conversions: BERT of 2 layers x 32, trained on made-up texts of three topics.

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
    """A WordPiece tokenizer trained on the texts."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
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


@pytest.fixture(scope="session")
def topic_files(tmp_path_factory: pytest.TempPathFactory) -> TopicFiles:
    """A student that files texts by topic, and its data. Nothing of it may be changed."""
    from edgescribe.converters.distillation import DistillationWeights
    from edgescribe.converters.predict import scorer
    from edgescribe.converters.torch_graph import TorchGraph
    from edgescribe.converters.training import TrainingSettings, train
    from edgescribe.converters.training_data import make_examples

    folder = tmp_path_factory.mktemp("topics")
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
    return TopicFiles(folder / "student", *(folder / f"{name}.jsonl" for name in ("train", "validation", "evaluation")))


# A tiny summariser: T5 of 2 + 2 layers x 64, trained to tell who does what where of made-up texts.

FACTS = (
    ("Anna", "Bruno", "Clara", "David", "Emma", "Felix", "Greta", "Hugo", "Irene", "Jonas", "Karla", "Lukas"),
    ("buys", "sells", "paints", "repairs", "reads", "sends", "cleans", "orders", "carries", "finds"),
    ("tea", "bread", "chairs", "lamps", "letters", "books", "maps", "tools", "paper", "wool"),
    ("outside", "upstairs", "indoors", "downtown", "nearby", "abroad"),
)
FILLERS = ("often", "again", "gladly", "with", "some", "friends", "after", "lunch", "very", "slowly", "and", "then")
UNSAID = ("zebra", "quartz", "violin", "harbour", "compass", "lantern")
OPENINGS = ("It was cold.", "Dinner was good.", "The day was long.", "Nobody came.")
SUMMARY_PREFIX = "summarize: "


class SummaryFiles(NamedTuple):
    """A checkpoint folder of the summariser, and data files for it (``text`` and ``summary``)."""

    student: Path
    train: Path
    validation: Path
    evaluation: Path

    def arguments(self) -> dict[str, Any]:
        """As keywords of ``edgescribe.convert``."""
        return {"task": "summarize", **self._asdict()}


def summary_rows(count: int, seed: int) -> list[dict[str, str]]:
    """Rows whose texts say one fact of each kind among fillers; the summary is the facts alone."""
    generator = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        facts = [str(generator.choice(kind)) for kind in FACTS]
        words = [word for fact in facts for word in (*generator.choice(FILLERS, generator.integers(0, 4)), fact)]
        text = f"{generator.choice(OPENINGS)} Today {' '.join(map(str, words))}."
        rows.append({"text": text, "summary": " ".join(facts)})
    return rows


def summary_tokenizer() -> Any:
    """A unigram tokenizer in T5's conventions that knows the words, and all else by its characters."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    words = [word for kind in (*FACTS, FILLERS, UNSAID) for word in kind]
    words += " ".join([*OPENINGS, "Today", SUMMARY_PREFIX]).replace(".", "").split()
    characters = "▁" + "".join(map(chr, range(33, 127)))
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(f"▁{word}", -3.0) for word in dict.fromkeys(words)] + [(character, -9.0) for character in characters]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    return tokenizer


def untrained_summarizer(seed: int = 0, **sizes: Any) -> Any:
    """A :class:`~edgescribe.converters.student.Student` that is to summarise, with transformers' first weights."""
    import torch
    from edgescribe.converters.families.t5_layers import settle
    from edgescribe.converters.student import Student
    from edgescribe.converters.summary_data import with_prefix
    from transformers import T5Config, T5ForConditionalGeneration

    tokenizer = summary_tokenizer()
    given = {
        "vocab_size": tokenizer.get_vocab_size(), "d_model": 64, "d_kv": 16, "num_heads": 4, "d_ff": 96,
        "num_layers": 2, "num_decoder_layers": 2, "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1,
    }  # fmt: skip
    torch.manual_seed(seed)
    model = T5ForConditionalGeneration(T5Config(**{**given, **sizes}))
    config = json.loads(model.config.to_json_string(use_diff=False))
    config, state = settle(config, {name: tensor.clone() for name, tensor in model.state_dict().items()})
    named = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    student = Student(
        config=config,
        state=state,
        tokenizer=tokenizer,
        tokenizer_config={"model_max_length": 64, "tokenizer_class": "PreTrainedTokenizerFast", **named},
        task="summarize",
        labels=(),
        max_tokens=64,
        pad_id=0,
        source="facts",
        sha256="0" * 64,
    )
    return with_prefix(student, SUMMARY_PREFIX)


@pytest.fixture(scope="session")
def summary_files(tmp_path_factory: pytest.TempPathFactory) -> SummaryFiles:
    """A student that summarises, trained in seconds, and its data. Nothing of it may be changed."""
    import torch
    from edgescribe.converters.distillation import DistillationWeights
    from edgescribe.converters.summary_data import make_summary_examples
    from edgescribe.converters.summary_metrics import scorer
    from edgescribe.converters.torch_decoder import graph_of
    from edgescribe.converters.training import TrainingSettings, train

    folder = tmp_path_factory.mktemp("facts")
    made = {"train": summary_rows(400, 1), "validation": summary_rows(40, 2), "evaluation": summary_rows(80, 3)}
    for name, rows in made.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    student = untrained_summarizer()
    examples = {
        name: make_summary_examples(student, [row["text"] for row in rows], [row["summary"] for row in rows])
        for name, rows in made.items()
    }
    losses = DistillationWeights(soft=0, hidden=0, attention=0, labels=1.0)
    settings = TrainingSettings(epochs=9, learning_rate=1e-2, mixed_precision="no", losses=losses)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small a student gains nothing by more, and they wait for each other on a busy machine
    try:
        graph = train(graph_of(student), examples["train"], settings, evaluate=scorer(examples["validation"])).graph
    finally:
        torch.set_num_threads(threads)
    student.with_state(graph.state()).save(folder / "student")
    files = (folder / f"{name}.jsonl" for name in ("train", "validation", "evaluation"))
    return SummaryFiles(folder / "student", *files)


@pytest.fixture(scope="session")
def summarizer_bundle(summary_files: SummaryFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of that student for all three runtimes, rounded to int8. Copy it before changing it."""
    from edgescribe.converters.make_summarizer_bundle import make_summarizer_bundle
    from edgescribe.converters.read import read_student
    from edgescribe.converters.torch_decoder import graph_of

    student = read_student(summary_files.student, "summarize")
    rows = [json.loads(line) for line in summary_files.evaluation.read_text(encoding="utf-8").splitlines()]
    out = tmp_path_factory.mktemp("summarizers") / "facts"
    make_summarizer_bundle(
        student,
        {"w8a8-dynamic": graph_of(student, "w8a8-dynamic")},
        ["onnxruntime", "openvino", "litert"],
        out,
        texts=[row["text"] for row in rows],
        source=student,
        recipe={"precision": "w8a8-dynamic"},
        seed=0,
        data_sha256={},
        name="facts",
        summary_tokens=24,
    )
    return out


@pytest.fixture(scope="session")
def easy_profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A device profile that grants more than any tiny student takes."""
    return _profile(tmp_path_factory.mktemp("profiles") / "easy.toml", p90_ms=10000, peak_rss_mib=4000, disk_mib=400)


@pytest.fixture(scope="session")
def tight_profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A device profile that grants a megabyte of memory and next to no time."""
    return _profile(tmp_path_factory.mktemp("profiles") / "tight.toml", p90_ms=1e-6, peak_rss_mib=1, disk_mib=400)


def _profile(path: Path, **budget: float) -> Path:
    catalogue = Path(__file__).parents[1] / "device_profiles" / "catalogue"
    text = (catalogue / "raspberry-pi-5.toml").read_text()
    text = re.sub(r'(?m)^id = ".*"$', f'id = "{path.stem}"', text, count=1)
    for name, value in budget.items():
        text = re.sub(rf"(?m)^{name} = .*$", f"{name} = {value}", text)
    path.write_text(text)
    return path
