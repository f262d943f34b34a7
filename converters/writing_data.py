"""Texts made ready for training a writer: pieces of tokens, each labelled by the token that follows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import StudentError
from .distillation import UNLABELLED
from .student import Student
from .training_data import AT_ONCE, Example

NO_TOKEN = -1


def encode_writing(student: Student, texts: Sequence[str], max_tokens: int) -> list[NDArray[np.int32]]:
    """The tokens of each text, without special ones, in pieces of at most ``max_tokens``; those of one are left out."""
    student.tokenizer.no_padding()
    student.tokenizer.no_truncation()
    found = []
    for start in range(0, len(texts), AT_ONCE):
        for encoding in student.tokenizer.encode_batch(list(texts[start : start + AT_ONCE]), add_special_tokens=False):
            ids = np.array(encoding.ids, np.int32)
            found += [ids[at : at + max_tokens] for at in range(0, len(ids), max_tokens)]
    return [ids for ids in found if len(ids) > 1]


def make_writing_examples(
    student: Student, texts: Sequence[str], teacher: Student | None = None, max_tokens: int | None = None
) -> list[Example]:
    """Examples of ``generate``. The teacher reads the very same tokens, by its own numbers of them.

    Raises:
        StudentError: the teacher does not know a token of the student's.
    """
    limit = min(max_tokens or student.max_tokens, student.max_tokens)
    rows = None if teacher is None else teacher_rows(student, teacher)
    numbers = None if rows is None else rows.numpy()
    examples = []
    for ids in encode_writing(student, texts, limit):
        labels = np.append(ids[1:].astype(np.int64), UNLABELLED)
        types, places, theirs = np.zeros_like(ids), None, None
        if teacher is not None:
            places = np.arange(len(ids), dtype=np.int32)
            theirs = ids if numbers is None else numbers[ids].astype(np.int32)
        examples.append(Example(ids, types, theirs, None if theirs is None else types, places, labels))
    return examples


def teacher_rows(student: Student, teacher: Student) -> torch.Tensor | None:
    """For each row of the student's vocabulary the teacher's number of that token, int64 ``[V]``.

    ``NO_TOKEN`` for rows that no token stands for; None where both vocabularies are one.

    Raises:
        StudentError: the teacher does not know a token of the student's.
    """
    ours = student.tokenizer.get_vocab(with_added_tokens=True)
    theirs = teacher.tokenizer.get_vocab(with_added_tokens=True)
    if ours == theirs and student.shape.vocabulary == teacher.shape.vocabulary:
        return None
    strange = sorted(set(ours) - set(theirs))
    if strange:
        raise StudentError(
            f"the teacher {teacher.source} does not know {len(strange)} of the student's tokens (among them "
            f"{strange[0]!r}); a writer learns from a teacher with its own vocabulary or a larger one that holds it"
        )
    rows = torch.full((student.shape.vocabulary,), NO_TOKEN)
    for token, number in ours.items():
        rows[number] = theirs[token]
    return rows
