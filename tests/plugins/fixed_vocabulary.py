"""WordPiece and Unigram vocabularies that come out alike in every run.

The trainers of ``tokenizers`` go through hash maps whose order differs from run to run, so that the same sentences give
another vocabulary each time (BPE's does not). A random student then reads other tokens in every run, and a test that
hangs on a close decision passes in one and fails in the next.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

LONGEST = 8
"""Characters of the longest piece."""


def give_wordpiece(tokenizer: Any, sentences: Iterable[str], size: int, special: Sequence[str], unknown: str) -> None:
    """Give ``tokenizer``, whose normalizer and pre-tokenizer are set, a WordPiece model of ``size`` tokens.

    The special tokens come first, in their order, then the pieces in order of the alphabet.
    """
    from tokenizers import models

    pieces: Counter[str] = Counter()
    for word, times in _words(tokenizer, sentences).items():
        for begin, end in _spans(word):
            pieces[word[:end] if begin == 0 else f"##{word[begin:end]}"] += times
    chosen = _chosen(pieces, size - len(special), lambda piece: len(piece.removeprefix("##")))
    numbers = {piece: number for number, piece in enumerate([*special, *chosen])}
    tokenizer.model = models.WordPiece(numbers, unk_token=unknown)
    tokenizer.add_special_tokens(list(special))


def give_unigram(tokenizer: Any, sentences: Iterable[str], size: int, special: Sequence[str], unknown: str) -> None:
    """The same with a Unigram model; a piece's score is the logarithm of how often it stands in the texts."""
    from tokenizers import models

    pieces: Counter[str] = Counter()
    for word, times in _words(tokenizer, sentences).items():
        for begin, end in _spans(word):
            pieces[word[begin:end]] += times
    chosen = _chosen(pieces, size - len(special), len)
    total = sum(pieces[piece] for piece in chosen)
    scored = [(piece, math.log(pieces[piece] / total)) for piece in chosen]
    vocabulary = [*((token, 0.0) for token in special), *scored]
    tokenizer.model = models.Unigram(vocabulary, unk_id=list(special).index(unknown))
    tokenizer.add_special_tokens(list(special))


def _words(tokenizer: Any, sentences: Iterable[str]) -> Counter[str]:
    words: Counter[str] = Counter()
    for sentence in sentences:
        text = sentence if tokenizer.normalizer is None else tokenizer.normalizer.normalize_str(sentence)
        words.update(word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text))
    return words


def _spans(word: str) -> Iterable[tuple[int, int]]:
    for begin in range(len(word)):
        for end in range(begin + 1, min(len(word), begin + LONGEST) + 1):
            yield begin, end


def _chosen(pieces: Counter[str], count: int, length: Callable[[str], int]) -> list[str]:
    """All single characters and, of the rest, the most frequent pieces, of equals the longest; sorted."""
    order = sorted(pieces, key=lambda piece: (length(piece) > 1, -pieces[piece], -length(piece), piece))
    singles = sum(length(piece) == 1 for piece in pieces)
    if not singles <= count <= len(pieces):
        raise ValueError(f"a vocabulary of {count} pieces was asked for; these texts give {singles} to {len(pieces)}")
    return sorted(order[:count])
