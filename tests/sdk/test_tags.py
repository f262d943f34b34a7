"""Words joined to entities by their BIO tags."""

from __future__ import annotations

import pytest
from edgescribe.sdk.tags import Tag, are_entity_labels, join_entities
from hypothesis import given
from hypothesis import strategies as st


def joined(labels: str) -> list[tuple[str, str]]:
    """Entities as (text, label) for words a b c … with these labels."""
    words = "abcdefgh"
    text = " ".join(words)
    tags = [Tag(words[i], label, 0.5, 2 * i, 2 * i + 1) for i, label in enumerate(labels.split())]
    return [(tag.text, tag.label) for tag in join_entities(text, tags)]


@pytest.mark.parametrize(
    ("labels", "entities"),
    [
        ("O B-X I-X O", [("b c", "X")]),
        ("B-X B-X I-X", [("a", "X"), ("b c", "X")]),
        ("I-X I-X O I-Y", [("a b", "X"), ("d", "Y")]),
        ("B-X I-Y", [("a", "X"), ("b", "Y")]),
        ("B-X O I-X", [("a", "X"), ("c", "X")]),
        ("B-X I-X L-X U-X", [("a b c", "X"), ("d", "X")]),
        ("B-X E-X I-X S-Y", [("a b", "X"), ("c", "X"), ("d", "Y")]),
        ("O O", []),
    ],
)
def test_joining(labels: str, entities: list[tuple[str, str]]) -> None:
    assert joined(labels) == entities


def test_an_entity_scores_the_mean_of_its_words() -> None:
    tags = [Tag("a", "B-X", 0.5, 0, 1), Tag("b", "I-X", 0.75, 2, 3), Tag("c", "I-X", 1.0, 4, 5)]
    assert join_entities("a b c", tags) == [Tag("a b c", "X", 0.75, 0, 5)]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["O", "B-X", "I-X"], True),
        (["I-X", "I-Y"], True),
        (["B-X-Y", "O"], True),
        (["NOUN", "VERB"], False),
        (["O", "B-X", "NOUN"], False),
        (["O"], False),
        (["S-BAR", "S-X"], False),
        ([], False),
    ],
)
def test_which_labels_are_joined(labels: list[str], expected: bool) -> None:
    assert are_entity_labels(labels) is expected


@given(st.lists(st.sampled_from(["O", "B-X", "I-X", "L-X", "U-X", "B-Y", "I-Y", "E-Y", "S-Y"]), max_size=8))
def test_every_tagged_word_is_in_just_one_entity(labels: list[str]) -> None:
    words = [text for text, _ in joined(" ".join(labels))]
    kept = [word for word, label in zip("abcdefgh", labels, strict=False) if label != "O"]
    assert " ".join(words).split() == kept
