"""Texts and their summaries made ready for a summariser: what it reads, what it writes, and what that teaches.

A source is the prefix that the student was trained with (FLAN-T5's ``summarize: ``) and the text, with the special
tokens that its tokenizer puts around one. A target is the tokens that start every summary, those of the summary and the
one that ends it; the decoder reads it without its last token and is to give it without its first.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import StudentError
from .distillation import UNLABELLED
from .student import Student
from .training_data import AT_ONCE, Example
from .writing_data import teacher_rows

SUMMARY_TOKENS = 128
"""The most tokens of a summary, those that start and end it included, where nothing else is said."""

SETTINGS = "task_specific_params"
"""The field of ``config.json`` where checkpoints keep how they summarise, under ``summarization``."""


def summarizing_settings(student: Student) -> dict[str, Any]:
    """How the checkpoint says that it summarises: ``prefix``, ``num_beams`` and the like; empty where it does not."""
    found = student.config.get(SETTINGS)
    settings = found.get("summarization") if isinstance(found, Mapping) else None
    return dict(settings) if isinstance(settings, Mapping) else {}


def prefix_of(student: Student) -> str:
    """What is put before every text; empty where the checkpoint names nothing."""
    prefix = summarizing_settings(student).get("prefix")
    return prefix if isinstance(prefix, str) else ""


def with_prefix(student: Student, prefix: str | None) -> Student:
    """The student with another prefix, in its configuration, where transformers' pipelines look for it too.

    None leaves it as it is.
    """
    if prefix is None or prefix == prefix_of(student):
        return student
    config = copy.deepcopy(student.config)
    settings = config.get(SETTINGS)
    settings = dict(settings) if isinstance(settings, Mapping) else {}
    config[SETTINGS] = {**settings, "summarization": {**summarizing_settings(student), "prefix": prefix}}
    return replace(student, config=config)


def start_ids(student: Student) -> tuple[int, ...]:
    """The tokens that every summary starts with, those that generation forces behind the first included.

    Raises:
        StudentError: the checkpoint names none.
    """
    first = _token(student, "decoder_start_token_id")
    if first is None:
        first = student.pad_id if student.config.get("model_type") in ("t5", "mt5") else None
    if first is None:
        raise StudentError(
            f"{student.source} names no decoder_start_token_id, so that it is not known how a summary starts; put it "
            "into its config.json"
        )
    forced = _token(student, "forced_bos_token_id")
    return (first,) if forced is None else (first, forced)


def end_id(student: Student) -> int:
    """The token that ends a summary.

    Raises:
        StudentError: nothing names one.
    """
    if not student.eos_ids:
        raise StudentError(
            f"{student.source} names no eos_token_id, so that a summary would never end; put it into its config.json"
        )
    return student.eos_ids[0]


def _token(student: Student, field: str) -> int | None:
    """A token's number by the field that names it, of the generation defaults first."""
    for settings in (student.generation, student.config):
        found = settings.get(field)
        if isinstance(found, int) and not isinstance(found, bool):
            return found
    return None


def encode_sources(student: Student, texts: Sequence[str], max_tokens: int) -> list[NDArray[np.int32]]:
    """The tokens of each text behind the prefix, cut at ``max_tokens`` with the special ones kept."""
    prefix, tokenizer = prefix_of(student), student.tokenizer
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length=max_tokens)
    found = []
    for start in range(0, len(texts), AT_ONCE):
        encodings = tokenizer.encode_batch([prefix + text for text in texts[start : start + AT_ONCE]])
        found += [np.array(each.ids, np.int32) for each in encodings]
    tokenizer.no_truncation()
    return found


def encode_summaries(student: Student, summaries: Sequence[str], max_tokens: int) -> list[NDArray[np.int32]]:
    """The tokens of each summary with those that start it and the one that ends it; one that is cut has no end."""
    student.tokenizer.no_padding()
    student.tokenizer.no_truncation()
    start, end = start_ids(student), end_id(student)
    found = []
    for first in range(0, len(summaries), AT_ONCE):
        part = list(summaries[first : first + AT_ONCE])
        for encoding in student.tokenizer.encode_batch(part, add_special_tokens=False):
            found.append(np.array([*start, *encoding.ids, end][:max_tokens], np.int32))
    return found


def make_summary_examples(
    student: Student,
    texts: Sequence[str],
    summaries: Sequence[str],
    teacher: Student | None = None,
    max_tokens: int | None = None,
    summary_tokens: int | None = None,
) -> list[Example]:
    """Examples of ``summarize``. The teacher reads the very same tokens, by its own numbers of them.

    Args:
        max_tokens: longer sources are cut; the student's own limit unless given.
        summary_tokens: longer targets are cut; :data:`SUMMARY_TOKENS` unless given, and never more than have positions.

    Raises:
        StudentError: it is not known how a summary starts or ends, or the teacher lacks a token of the student's.
    """
    limit = min(max_tokens or student.max_tokens, student.max_tokens)
    rows = None if teacher is None else teacher_rows(student, teacher)
    numbers = None if rows is None else rows.numpy()
    forced = len(start_ids(student)) - 1
    sources = encode_sources(student, texts, limit)
    most = summary_tokens or SUMMARY_TOKENS
    if student.state:  # one without weights, which stands for a bundle, tells no sizes
        most = min(most, student.shape.positions - student.shape.position_offset)
    targets = encode_summaries(student, summaries, most)
    examples = []
    for source, target in zip(sources, targets, strict=True):
        ids, labels = target[:-1], target[1:].astype(np.int64)
        labels[:forced] = UNLABELLED
        theirs = None if teacher is None else _renumbered(ids, numbers)
        their_source = None if teacher is None else _renumbered(source, numbers)
        types = np.zeros_like(ids)
        examples.append(
            Example(ids, types, theirs, None if theirs is None else types, None, labels, source, their_source)
        )
    return examples


def _renumbered(ids: NDArray[np.int32], numbers: NDArray[np.int64] | None) -> NDArray[np.int32]:
    return ids if numbers is None else numbers[ids].astype(np.int32)
