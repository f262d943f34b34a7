"""A user's data files as conversion needs them: texts with class numbers, and examples of any task's students."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..errors import DataError
from ..sdk.labelled_text import DataReport, Row, read_rows
from .anatomy import Task
from .distillation import UNLABELLED
from .student import Student
from .summary_data import make_summary_examples, prefix_of
from .training_data import Example, make_examples, make_tag_examples
from .writing_data import make_writing_examples

COLUMNS: dict[str, tuple[str, ...]] = {
    "classify": ("text", "label"),
    "tag": ("text", "tags"),
    "embed": ("text",),
    "generate": ("text",),
    "summarize": ("text", "summary"),
}
AT_ONCE = 1000
"""Texts that are cut into tokens between two reports of progress."""

HELD_OUT = 0.1
"""Share of the training rows that is kept for validation where no validation file is given."""


@dataclass(frozen=True)
class Texts:
    """Rows of one file.

    ``labels``: a class name for each text, or one for each word; empty for ``embed``. ``summaries``: one for each text
    for ``summarize``, empty otherwise.
    """

    task: Task
    texts: list[str]
    labels: list[tuple[str, ...]]
    sha256: str
    summaries: list[str] = field(default_factory=list)

    def names(self) -> tuple[str, ...]:
        """All class or tag names, sorted."""
        return tuple(sorted({name for row in self.labels for name in row}))

    def part(self, numbers: Sequence[int]) -> Texts:
        """Some of the rows."""
        labels = [self.labels[number] for number in numbers] if self.labels else []
        summaries = [self.summaries[number] for number in numbers] if self.summaries else []
        return Texts(self.task, [self.texts[number] for number in numbers], labels, self.sha256, summaries)

    def words(self, student: Student) -> list[str]:
        """All that a student reads and writes of these rows, for its vocabulary: texts, as it reads them, summaries."""
        if self.task != "summarize":
            return list(self.texts)
        prefix = prefix_of(student)
        return [prefix + text for text in self.texts] + self.summaries


def read_texts(path: Path, task: Task, warn: Callable[[str], None] | None = None) -> Texts:
    """Read a data file for a task; texts are held in memory, since training goes over them many times.

    Raises:
        DataError: missing, unreadable, without the columns the task needs, too many bad rows, or empty.
    """
    report = DataReport()
    rows: list[Row] = list(read_rows(path, COLUMNS[task], report))
    if not rows:
        raise DataError(f"{path} holds no usable rows; the task {task} needs {' and '.join(COLUMNS[task])}")
    if report.bad and warn is not None:
        warn(f"{path}: {report.summary()}")
    labels: list[tuple[str, ...]] = []
    if task == "classify":
        labels = [(row.label or "",) for row in rows]
    elif task == "tag":
        labels = [row.tags for row in rows]
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    summaries = [row.summary or "" for row in rows] if task == "summarize" else []
    return Texts(task, [row.text for row in rows], labels, digest, summaries)


def hold_out(texts: Texts, seed: int) -> tuple[Texts, Texts]:
    """Split training rows into those to train on and those to validate on."""
    order = np.random.default_rng(seed).permutation(len(texts.texts)).tolist()
    count = max(1, round(len(order) * HELD_OUT))
    if count >= len(order):
        raise DataError("there is just one training row; give more, or a validation file as well")
    return texts.part(sorted(order[count:])), texts.part(sorted(order[:count]))


def check_labels(texts: Texts, known: Sequence[str], path: Path) -> None:
    """See that every label of a file is one that the student knows (``embed`` has none).

    Raises:
        DataError: names the labels that are not.
    """
    strange = sorted(set(texts.names()) - set(known))
    if strange:
        raise DataError(
            f"{path} has labels that the student does not know: {', '.join(strange[:5])}"
            f"{' …' if len(strange) > 5 else ''}; it knows {', '.join(list(known)[:30])}. A student is converted for "
            "the classes that it was trained on: fine-tune it first, or correct the file"
        )


def examples_of(
    texts: Texts,
    student: Student,
    teacher: Student | None = None,
    max_tokens: int | None = None,
    on_progress: Callable[[float], None] | None = None,
    summary_tokens: int | None = None,
) -> list[Example]:
    """Examples for training or scoring a student of the texts' task.

    ``max_tokens``: longer texts are cut; ``summary_tokens``: longer summaries are.
    """
    count, made = len(texts.texts), list[Example]()
    for start in range(0, count, AT_ONCE):
        numbers = range(start, min(start + AT_ONCE, count))
        made += _examples_of(texts.part(numbers), student, teacher, max_tokens, summary_tokens)
        if on_progress is not None:
            on_progress(len(made) / count)
    return made


def _examples_of(
    texts: Texts, student: Student, teacher: Student | None, max_tokens: int | None, summary_tokens: int | None
) -> list[Example]:
    if texts.task == "summarize":
        return make_summary_examples(student, texts.texts, texts.summaries, teacher, max_tokens, summary_tokens)
    if texts.task == "generate":
        return make_writing_examples(student, texts.texts, teacher, max_tokens)
    number = {name: index for index, name in enumerate(student.labels)}
    if texts.task == "tag":
        tags = [[number.get(name, UNLABELLED) for name in row] for row in texts.labels]
        return make_tag_examples(student, texts.texts, tags, teacher, max_tokens)
    labels = [number.get(row[0], UNLABELLED) for row in texts.labels] if texts.task == "classify" else None
    return make_examples(student, texts.texts, labels, teacher, max_tokens)
