"""Texts for training a writer: pieces with the tokens that follow, and the teacher's numbers of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from edgescribe.converters.distillation import UNLABELLED
from edgescribe.converters.language_metrics import foresee, writing_metrics
from edgescribe.converters.torch_decoder import graph_of
from edgescribe.converters.writing_data import NO_TOKEN, encode_writing, make_writing_examples, teacher_rows
from edgescribe.errors import DataError, StudentError

TEXTS = ["a small game of chess for two players", "the network daemon routes packets between hosts", "x", "…"]


def test_pieces_hold_every_token_once_and_are_labelled_by_what_follows(make_writer: Callable[..., Any]) -> None:
    student = make_writer("llama")
    examples = make_writing_examples(student, TEXTS, None, max_tokens=8)
    whole = [student.tokenizer.encode(text, add_special_tokens=False).ids for text in TEXTS]
    pieces = [ids[start : start + 8] for ids in whole for start in range(0, len(ids), 8)]
    assert [example.ids.tolist() for example in examples] == [piece for piece in pieces if len(piece) > 1]
    for example in examples:
        assert example.labels.tolist() == [*example.ids[1:].tolist(), UNLABELLED]
        assert example.teacher_ids is None


def test_a_teacher_of_the_same_vocabulary_reads_the_same_numbers(make_writer: Callable[..., Any]) -> None:
    student, teacher = make_writer("llama"), make_writer("llama", seed=1)
    assert teacher_rows(student, teacher) is None
    example = make_writing_examples(student, TEXTS, teacher)[0]
    assert example.teacher_ids is not None
    assert example.teacher_ids.tolist() == example.ids.tolist()


def test_a_student_with_other_numbers_is_read_by_token(make_writer: Callable[..., Any]) -> None:
    teacher = make_writer("llama")
    student = renumbered(teacher)
    rows = teacher_rows(student, teacher)
    assert rows is not None
    ours = student.tokenizer.get_vocab()
    theirs = teacher.tokenizer.get_vocab()
    assert all(int(rows[number]) == theirs[token] for token, number in ours.items())
    assert NO_TOKEN not in rows[sorted(ours.values())].tolist()
    example = make_writing_examples(student, TEXTS, teacher)[0]
    assert teacher.tokenizer.decode(example.teacher_ids.tolist()) == TEXTS[0]


def test_a_teacher_that_lacks_a_token_is_refused_by_name(make_writer: Callable[..., Any]) -> None:
    teacher = make_writer("llama")
    student = renumbered(teacher)
    student.tokenizer.add_tokens(["zebra"])
    with pytest.raises(StudentError, match="zebra"):
        teacher_rows(student, teacher)


def test_what_is_foreseen_is_the_same_alone_and_together(make_writer: Callable[..., Any]) -> None:
    graph = graph_of(make_writer("llama"))
    tokens = encode_writing(graph.student, [*TEXTS, *(text[:9] for text in TEXTS[:2])], 48)
    losses, guesses = foresee(graph, tokens)
    for ids, loss, guess in zip(tokens, losses, guesses, strict=True):
        (alone,), (its,) = foresee(graph, [ids])
        np.testing.assert_allclose(loss, alone, atol=1e-3)
        assert guess.shape == its.shape == (len(ids) - 1,)


def test_metrics_of_writing() -> None:
    tokens = [np.array([5, 6, 7], np.int32), np.array([5, 7], np.int32)]
    losses = [np.log(np.array([2, 4], np.float32)), np.log(np.array([8], np.float32))]
    guesses = [np.array([6, 5]), np.array([7])]
    found = writing_metrics(losses, guesses, tokens, ["abc", "de"], [np.array([6, 5]), np.array([1])])
    assert found.examples == 3
    assert found.perplexity == pytest.approx(4.0)
    assert found.accuracy == pytest.approx(2 / 3)
    assert found.agreement == pytest.approx(2 / 3)
    assert found.bits_per_character == pytest.approx((1 + 2 + 3) / 5)
    with pytest.raises(DataError, match="two tokens"):
        writing_metrics([], [], [], [])


def renumbered(student: Any) -> Any:
    """The student with its tokens' numbers from 2 on in another order: as after its vocabulary was trimmed."""
    import json

    from tokenizers import Tokenizer

    content = json.loads(student.tokenizer.to_str())
    special = {each["id"] for each in content["added_tokens"]}
    free = sorted(number for number in content["model"]["vocab"].values() if number not in special)
    other = dict(zip(free, reversed(free), strict=True))
    vocabulary = content["model"]["vocab"]
    content["model"]["vocab"] = {token: other.get(number, number) for token, number in vocabulary.items()}
    return replace(student, tokenizer=Tokenizer.from_str(json.dumps(content)))
