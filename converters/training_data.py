"""Texts made ready for training: cut into tokens once, batched by like length, the same order for the same seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from ..errors import DataError
from .distillation import UNLABELLED
from .student import Student

POOL = 50
"""Batches whose texts are sorted by length together."""

AT_ONCE = 1000
"""Texts that are cut into tokens together."""

ROUND = 16
"""Batches are padded to a multiple of this: oneDNN compiles a kernel for every new shape, which costs more."""


@dataclass(frozen=True)
class Example:
    """One text: token ids and types int32 ``[T]`` for student and teacher, and its label(s).

    ``places``: int32 ``[T]``, for each of the student's tokens the teacher's token that it lies in.
    ``labels``: int64 ``[1]`` for a text, ``[T]`` for tags; ``UNLABELLED`` where there is none.
    ``source``, ``teacher_source``: int32 ``[S]``, of a summary the text that it is of; ``ids`` are then the summary's
    behind the token that starts it.
    """

    ids: NDArray[np.int32]
    types: NDArray[np.int32]
    teacher_ids: NDArray[np.int32] | None
    teacher_types: NDArray[np.int32] | None
    places: NDArray[np.int32] | None
    labels: NDArray[np.int64]
    source: NDArray[np.int32] | None = None
    teacher_source: NDArray[np.int32] | None = None

    @property
    def tokens(self) -> int:
        """Tokens that the student runs for it, those of its source included."""
        return len(self.ids) + (0 if self.source is None else len(self.source))


@dataclass(frozen=True)
class Batch:
    """Examples padded to the longest: feeds by input name int64 ``[B, T]``, labels, and where the student's tokens
    lie among the teacher's: int64 ``[B, T]``, 0 for padding."""

    feeds: dict[str, torch.Tensor]
    teacher_feeds: dict[str, torch.Tensor] | None
    labels: torch.Tensor
    places: torch.Tensor | None


def encode_texts(
    tokenizer: Tokenizer, texts: Sequence[str], max_tokens: int
) -> list[tuple[NDArray[np.int32], NDArray[np.int32]]]:
    """Token ids and types of each text, special tokens included, cut at ``max_tokens``."""
    encodings = _encode(tokenizer, texts, max_tokens)
    return [(np.array(each.ids, np.int32), np.array(each.type_ids, np.int32)) for each in encodings]


def _encode(tokenizer: Tokenizer, texts: Sequence[str], max_tokens: int) -> list[Encoding]:
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length=max_tokens)
    encodings: list[Encoding] = tokenizer.encode_batch(list(texts))
    tokenizer.no_truncation()
    return encodings


def _example(own: Encoding, other: Encoding | None, labels: NDArray[np.int64]) -> Example:
    return Example(
        np.array(own.ids, np.int32),
        np.array(own.type_ids, np.int32),
        None if other is None else np.array(other.ids, np.int32),
        None if other is None else np.array(other.type_ids, np.int32),
        None if other is None else teacher_places(own, other),
        labels,
    )


def teacher_places(own: Encoding, other: Encoding) -> NDArray[np.int32]:
    """For each of the student's tokens of a text, the number of the teacher's token in which it begins.

    Special tokens stand for each other, counted from the end they stand at; what the teacher's cut left out lies in
    its last token.
    """
    inside = [place for place, special in enumerate(other.special_tokens_mask) if not special]
    begins = np.array([other.offsets[place][0] for place in inside])
    first = next((place for place, special in enumerate(own.special_tokens_mask) if not special), len(own.ids))
    places = np.zeros(len(own.ids), np.int32)
    for place, ((begin, _), special) in enumerate(zip(own.offsets, own.special_tokens_mask, strict=True)):
        if special:
            places[place] = place if place < first else len(other.ids) - (len(own.ids) - place)
        elif inside:
            places[place] = inside[max(0, int(np.searchsorted(begins, begin, side="right")) - 1)]
    clipped: NDArray[np.int32] = np.clip(places, 0, max(0, len(other.ids) - 1))
    return clipped


def make_examples(
    student: Student,
    texts: Sequence[str],
    labels: Sequence[int] | None,
    teacher: Student | None = None,
    max_tokens: int | None = None,
) -> list[Example]:
    """Examples of whole-text tasks (``classify``, ``embed``). ``labels`` are class numbers, -100 where unknown."""
    limit = min(max_tokens or student.max_tokens, student.max_tokens)
    examples: list[Example] = []
    for start in range(0, len(texts), AT_ONCE):
        part = texts[start : start + AT_ONCE]
        own = _encode(student.tokenizer, part, limit)
        other: Sequence[Encoding | None] = [None] * len(own)
        if teacher is not None:
            other = _encode(teacher.tokenizer, part, min(limit, teacher.max_tokens))
        for number, (one, its_teacher) in enumerate(zip(own, other, strict=True), start):
            label = UNLABELLED if labels is None else labels[number]
            examples.append(_example(one, its_teacher, np.array([label], np.int64)))
    return examples


def make_tag_examples(
    student: Student,
    texts: Sequence[str],
    tags: Sequence[Sequence[int]],
    teacher: Student | None = None,
    max_tokens: int | None = None,
) -> list[Example]:
    """Examples of ``tag``: ``tags`` holds one class number for each white-space separated word of a text.

    A word's first token carries its tag, its other tokens and the special ones none. Words past ``max_tokens`` are
    left out.

    Raises:
        DataError: a text has another number of words than of tags.
    """
    limit = min(max_tokens or student.max_tokens, student.max_tokens)
    student.tokenizer.no_padding()
    student.tokenizer.enable_truncation(max_length=limit)
    examples = []
    for text, numbers in zip(texts, tags, strict=True):
        encoding = student.tokenizer.encode(text)
        word_of = word_numbers(text)
        words = max(word_of, default=-1) + 1
        if words != len(numbers):
            student.tokenizer.no_truncation()
            raise DataError(f"a text of {words} words has {len(numbers)} tags; it begins: {text[:60]!r}")
        labels = np.full(len(encoding.ids), UNLABELLED, np.int64)
        seen = -1
        for place, (begin, end) in enumerate(encoding.offsets):
            if end <= begin or encoding.special_tokens_mask[place]:
                continue
            while begin < end - 1 and word_of[begin] < 0:
                begin += 1
            word = word_of[begin]
            if word > seen:
                labels[place], seen = numbers[word], word
        other = None if teacher is None else _encode(teacher.tokenizer, [text], min(limit, teacher.max_tokens))[0]
        examples.append(_example(encoding, other, labels))
    student.tokenizer.no_truncation()
    return examples


def word_numbers(text: str) -> list[int]:
    """For each character, the number of the white-space separated word that it belongs to, or -1."""
    numbers, word, inside = [], -1, False
    for character in text:
        if character.isspace():
            inside = False
            numbers.append(-1)
            continue
        word, inside = (word if inside else word + 1), True
        numbers.append(word)
    return numbers


def batch_orders(lengths: Sequence[int], size: int, seed: int, epoch: int) -> list[list[int]]:
    """Batches of example numbers for one epoch: shuffled, of like length within a pool, in random order."""
    generator = np.random.default_rng((seed, epoch))
    order = generator.permutation(len(lengths))
    batches: list[list[int]] = []
    for start in range(0, len(order), size * POOL):
        pool = sorted(order[start : start + size * POOL].tolist(), key=lambda index: lengths[index])
        batches.extend(pool[first : first + size] for first in range(0, len(pool), size))
    generator.shuffle(batches)
    return batches


def _pad(rows: Sequence[NDArray[np.int32]], fill: int, side: str, length: int) -> torch.Tensor:
    padded = torch.full((len(rows), length), fill, dtype=torch.long)
    for index, row in enumerate(rows):
        values = torch.from_numpy(row.astype(np.int64))
        if side == "left":
            padded[index, length - len(row) :] = values
        else:
            padded[index, : len(row)] = values
    return padded


def _feeds(
    rows: Sequence[NDArray[np.int32]], types: Sequence[NDArray[np.int32]], of: Student
) -> dict[str, torch.Tensor]:
    longest, side = max(len(row) for row in rows), of.anatomy.padding_side
    length = min(-(-longest // ROUND) * ROUND, max(of.max_tokens, longest))
    return {
        "input_ids": _pad(rows, of.pad_id, side, length),
        "attention_mask": _pad([np.ones_like(row) for row in rows], 0, side, length),
        "token_type_ids": _pad(types, 0, side, length),
    }


def collate(examples: Sequence[Example], student: Student, teacher: Student | None) -> Batch:
    """Pad examples into a batch."""
    if examples[0].source is not None:
        return _collated_summaries(examples, student, teacher)
    feeds = _feeds([each.ids for each in examples], [each.types for each in examples], student)
    if examples[0].labels.size > 1 or student.task == "tag":
        length = feeds["input_ids"].shape[1]
        rows = [each.labels.astype(np.int32) for each in examples]
        labels = _pad(rows, UNLABELLED, student.anatomy.padding_side, length)
    else:
        labels = torch.tensor([int(each.labels[0]) for each in examples])
    if teacher is None:
        return Batch(feeds, None, labels, None)
    ids = [each.teacher_ids for each in examples if each.teacher_ids is not None]
    types = [each.teacher_types for each in examples if each.teacher_types is not None]
    teacher_feeds = _feeds(ids, types, teacher)
    places = [each.places for each in examples if each.places is not None]
    if teacher.anatomy.padding_side == "left":
        width = teacher_feeds["input_ids"].shape[1]
        places = [row + np.int32(width - len(cut)) for row, cut in zip(places, ids, strict=True)]
    length = feeds["input_ids"].shape[1]
    return Batch(feeds, teacher_feeds, labels, _pad(places, 0, student.anatomy.padding_side, length))


def _collated_summaries(examples: Sequence[Example], student: Student, teacher: Student | None) -> Batch:
    """Feeds ``source_ids`` and ``source_mask`` ``[B, S]``, ``input_ids`` and ``attention_mask`` ``[B, T]``.

    Teacher and student read the same tokens, each by its own numbers, so that every token stands at one place.
    """
    feeds = _summary_feeds([(_known(each.source), each.ids) for each in examples], student)
    width = feeds["input_ids"].shape[1]
    labels = _pad([each.labels.astype(np.int32) for each in examples], UNLABELLED, "right", width)
    if teacher is None:
        return Batch(feeds, None, labels, None)
    theirs = _summary_feeds([(_known(each.teacher_source), _known(each.teacher_ids)) for each in examples], teacher)
    return Batch(feeds, theirs, labels, torch.arange(width).expand(len(examples), -1))


def _summary_feeds(
    pairs: Sequence[tuple[NDArray[np.int32], NDArray[np.int32]]], of: Student
) -> dict[str, torch.Tensor]:
    feeds, places = {}, of.shape.positions - of.shape.position_offset
    for side, names in enumerate((("source_ids", "source_mask"), ("input_ids", "attention_mask"))):
        rows = [pair[side] for pair in pairs]
        longest = max(map(len, rows))
        width = min(-(-longest // ROUND) * ROUND, max(places, longest))
        feeds[names[0]] = _pad(rows, of.pad_id, "right", width)
        feeds[names[1]] = _pad([np.ones_like(row) for row in rows], 0, "right", width)
    return feeds


def _known(row: NDArray[np.int32] | None) -> NDArray[np.int32]:
    if row is None:
        raise ValueError("examples with a teacher's tokens are expected; make them with the teacher")
    return row
