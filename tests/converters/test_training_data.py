"""Texts and tags made ready for training."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from edgescribe.converters.distillation import UNLABELLED
from edgescribe.converters.student import Student
from edgescribe.converters.training_data import (
    batch_orders,
    collate,
    make_examples,
    make_tag_examples,
    word_numbers,
)
from edgescribe.errors import DataError
from hypothesis import given, settings
from hypothesis import strategies as st

KINDS = ("bert", "roberta", "albert", "xlnet")
SPACES = [" ", "  ", "\t", "\n", "\u00a0", "\u2003", " \r\n "]
Make = Callable[..., Student]
made: dict[str, Student] = {}


def tagger(make_student: Make, family: str) -> Student:
    if family not in made:
        made[family] = make_student(family, "tag")
    return made[family]


@given(st.text())
def test_words_are_those_that_white_space_splits(text: str) -> None:
    numbers = word_numbers(text)
    words: dict[int, str] = {}
    for number, character in zip(numbers, text, strict=True):
        if number >= 0:
            words[number] = words.get(number, "") + character
    assert list(words.values()) == text.split()


@settings(max_examples=60, deadline=None)
@given(
    family=st.sampled_from(KINDS),
    words=st.lists(st.sampled_from(["game", "chess-club", "Netz", "x1,", "packets", "(über)"]), min_size=1, max_size=5),
    spaces=st.lists(st.sampled_from(SPACES), min_size=6, max_size=6),
    margins=st.booleans(),
)
def test_each_word_is_tagged_once_and_in_order(
    make_student: Make, family: str, words: list[str], spaces: list[str], margins: bool
) -> None:
    student = tagger(make_student, family)
    text = "".join(word + space for word, space in zip(words, spaces, strict=False))
    text = spaces[-1] + text if margins else text.rstrip()
    (example,) = make_tag_examples(student, [text], [[number % 3 for number in range(len(words))]], max_tokens=32)
    given_tags = example.labels[example.labels != UNLABELLED].tolist()
    whole = len(student.tokenizer.encode(text).ids) <= 32
    expected = [number % 3 for number in range(len(words))]
    assert given_tags == expected if whole else given_tags == expected[: len(given_tags)]
    special = student.tokenizer.encode(text).special_tokens_mask
    if whole:
        assert all(label == UNLABELLED for label, mark in zip(example.labels, special, strict=True) if mark)


def test_words_past_the_longest_input_are_left_out(make_student: Make) -> None:
    student = tagger(make_student, "bert")
    (example,) = make_tag_examples(student, ["game " * 40], [[1] * 40], max_tokens=12)
    assert len(example.ids) == len(example.labels) == 12
    assert 1 <= int((example.labels == 1).sum()) <= 10


def test_tags_that_do_not_fit_their_text(make_student: Make) -> None:
    with pytest.raises(DataError, match="2 words has 3 tags"):
        make_tag_examples(tagger(make_student, "bert"), ["two words"], [[0, 1, 2]])


@pytest.mark.parametrize("family", ["bert", "xlnet"])
def test_padding_goes_where_the_family_wants_it(make_student: Make, family: str) -> None:
    student = tagger(make_student, family)
    batch = collate(make_tag_examples(student, ["game", "game of chess"], [[0], [0, 1, 2]]), student, None)
    mask = batch.feeds["attention_mask"]
    first = mask[0].tolist()
    assert first == sorted(first, reverse=family == "bert")
    assert torch.equal(batch.feeds["input_ids"][mask == 0], torch.full_like(mask[mask == 0], student.pad_id))
    assert bool((batch.labels[mask == 0] == UNLABELLED).all())


def test_texts_are_cut_at_the_longest_input(make_student: Make) -> None:
    student = tagger(make_student, "bert")
    (example,) = make_examples(student, ["game " * 100], [1])
    assert len(example.ids) == student.max_tokens
    assert example.ids[-1] == student.tokenizer.token_to_id("[SEP]")
    assert student.tokenizer.truncation is None


@given(st.lists(st.integers(1, 50), min_size=1, max_size=300), st.integers(1, 9), st.integers(0, 5))
def test_every_example_is_in_one_batch(lengths: list[int], size: int, seed: int) -> None:
    orders = batch_orders(lengths, size, seed, epoch=1)
    assert sorted(number for batch in orders for number in batch) == list(range(len(lengths)))
    assert orders == batch_orders(lengths, size, seed, epoch=1)
    assert max(len(batch) for batch in orders) <= size
