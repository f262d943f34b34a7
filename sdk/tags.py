"""From a tag for each word to the tags that a caller gets: words as they are, or words joined to entities.

Labels of the forms ``B-X``, ``I-X`` and ``O`` (BIO, IOB1), with ``L-``/``E-`` and ``U-``/``S-`` too (BILOU, BIOES),
are joined to entities ``X``; with any other set of labels each word is given with its own label.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .tokenizer import Word

_PREFIXED = re.compile(r"([BILEUS])-(.+)", re.DOTALL)
_OUTSIDE = "O"


@dataclass(frozen=True, slots=True)
class Tag:
    """A tagged piece of a text: ``text`` is ``whole[start:end]``, in characters.

    ``score``: softmax probability of the label, for an entity the mean over its words.
    """

    text: str
    label: str
    score: float
    start: int
    end: int


class Tags(list[Tag]):
    """The tags of one text in reading order. ``truncated`` tells that the end of the text was left out."""

    def __init__(self, tags: Sequence[Tag] = (), truncated: bool = False) -> None:
        super().__init__(tags)
        self.truncated = truncated


def are_entity_labels(labels: Sequence[str]) -> bool:
    """Whether labels follow BIO or one of its kin: all but ``O`` prefixed, at least one of them ``B-`` or ``I-``."""
    prefixes = set()
    for label in labels:
        if label == _OUTSIDE:
            continue
        found = _PREFIXED.fullmatch(label)
        if found is None:
            return False
        prefixes.add(found[1])
    return bool(prefixes & {"B", "I"})


def word_tags(text: str, words: Sequence[Word], probabilities: NDArray[np.float64], labels: Sequence[str]) -> list[Tag]:
    """The likeliest label of each word; ``probabilities`` is ``[words, labels]``."""
    best = probabilities.argmax(axis=1) if len(words) else ()
    return [
        Tag(text[word.start : word.end], labels[label], float(probabilities[index, label]), word.start, word.end)
        for index, (word, label) in enumerate(zip(words, best, strict=True))
    ]


def join_entities(text: str, tags: Sequence[Tag]) -> list[Tag]:
    """Join words' BIO tags to entities; ``O`` is left out. An ``I-`` without a beginning begins an entity."""
    entities: list[Tag] = []
    scores: list[float] = []
    running = ""  # label of the entity that the next word may go on with
    for tag in tags:
        found = _PREFIXED.fullmatch(tag.label)
        if found is None:
            running = ""
            continue
        prefix, label = found[1], found[2]
        if label == running and prefix in "ILE":
            first = entities[-1]
            scores.append(tag.score)
            entities[-1] = Tag(text[first.start : tag.end], label, sum(scores) / len(scores), first.start, tag.end)
        else:
            scores = [tag.score]
            entities.append(Tag(tag.text, label, tag.score, tag.start, tag.end))
        running = label if prefix in "BI" else ""
    return entities
