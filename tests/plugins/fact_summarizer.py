"""A tiny summariser, and its data: T5 of 2 + 2 layers x 64, trained to tell who does what where of made-up texts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

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


def make_student(folder: Path) -> None:
    """Train the summariser and write it and its data."""
    from edgescribe.converters.distillation import DistillationWeights
    from edgescribe.converters.summary_data import make_summary_examples
    from edgescribe.converters.summary_metrics import scorer
    from edgescribe.converters.torch_decoder import graph_of
    from edgescribe.converters.training import TrainingSettings, train

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
    graph = train(graph_of(student), examples["train"], settings, evaluate=scorer(examples["validation"])).graph
    student.with_state(graph.state()).save(folder / "student")


def make_bundle(files: SummaryFiles, folder: Path) -> None:
    """Round the trained summariser to int8 and bundle it for all three runtimes."""
    from edgescribe.converters.make_summarizer_bundle import make_summarizer_bundle
    from edgescribe.converters.read import read_student
    from edgescribe.converters.torch_decoder import graph_of

    student = read_student(files.student, "summarize")
    rows = [json.loads(line) for line in files.evaluation.read_text(encoding="utf-8").splitlines()]
    make_summarizer_bundle(
        student,
        {"w8a8-dynamic": graph_of(student, "w8a8-dynamic")},
        ["onnxruntime", "openvino", "litert"],
        folder / "facts",
        texts=[row["text"] for row in rows],
        source=student,
        recipe={"precision": "w8a8-dynamic"},
        seed=0,
        data_sha256={},
        name="facts",
        summary_tokens=24,
    )


MakeOnce = Callable[[str, Callable[[Path], None]], Path]


@pytest.fixture(scope="session")
def summary_files(made_once: MakeOnce) -> SummaryFiles:
    """A student that summarises, trained in seconds, and its data. Nothing of it may be changed."""
    folder = made_once("facts", make_student)
    files = (folder / f"{name}.jsonl" for name in ("train", "validation", "evaluation"))
    return SummaryFiles(folder / "student", *files)


@pytest.fixture(scope="session")
def summarizer_bundle(summary_files: SummaryFiles, made_once: MakeOnce) -> Path:
    """A bundle of that student for all three runtimes, rounded to int8. Copy it before changing it."""
    return made_once("summarizers", lambda folder: make_bundle(summary_files, folder)) / "facts"
