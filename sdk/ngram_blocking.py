"""Tokens that may not come next in a summary: those that would repeat an n-gram, and its end before its least length.

Blocking n-grams is after Paulus et al., "A Deep Reinforced Model for Abstractive Summarization" (2017).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from .generation import TokenConstraint


def repeating(tokens: Sequence[int], size: int) -> list[int]:
    """The tokens with which the last ``size - 1`` of ``tokens`` would be an n-gram that stands there already."""
    if not 0 < size <= len(tokens):
        return []
    tail = tokens[len(tokens) + 1 - size :]
    ends = range(size - 1, len(tokens))
    return [tokens[end] for end in ends if tokens[end + 1 - size : end] == tail]


class Blocking:
    """What may not come next in one summary, as a constraint of its text.

    Args:
        start: tokens that start it; they count among its n-grams.
        size: tokens of an n-gram that may stand there once; 0: any number of times.
        end_tokens: tokens that end a summary.
        least: tokens behind ``start`` before which it may not end.
        other: a constraint that holds beside it, and alone where both together leave no token.
    """

    def __init__(
        self,
        start: Sequence[int],
        size: int,
        end_tokens: Iterable[int],
        least: int,
        other: TokenConstraint | None = None,
    ) -> None:
        self._tokens = list(start)
        self._size, self._ends, self._least = size, list(end_tokens), len(start) + least
        self._other = other

    def mask(self, logits: NDArray[np.float32]) -> None:
        """See TokenConstraint."""
        if self._other is not None:
            self._other.mask(logits)
        block(logits, self.blocked(self._tokens))

    def accept(self, token: int) -> bool:
        """See TokenConstraint."""
        self._tokens.append(token)
        return self._other is not None and self._other.accept(token)

    def blocked(self, tokens: Sequence[int]) -> list[int]:
        """What may not come behind ``tokens``, those that start the summary included."""
        ends = self._ends if len(tokens) < self._least else []
        return ends + repeating(tokens, self._size)


def block(scores: NDArray[np.floating], tokens: list[int]) -> None:
    """Put the scores ``[V]`` of tokens to minus infinity, unless no other token is left."""
    if tokens:
        before = scores[tokens]
        scores[tokens] = -np.inf
        if scores.max() == -np.inf:
            scores[tokens] = before
