"""Prompt lookup: guesses the next tokens by copying what followed the same tokens earlier in the text.

After Saxena, "Prompt Lookup Decoding" (2023): rewriting and summarising copy much of the prompt. The model checks a
guess in one run, so that a wrong one costs time and never changes the text.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass

_KEYS = (3, 2)
"""Numbers of tokens that must agree for a copy to begin."""

_NEAR = 8
_PRICE = 0.18
_LENGTHS = (2, 3, 4, 6, 9, 13, 20)
_AGREES = (0.55, 0.7, 0.8, 0.85, 0.9, 0.9, 0.96)
_WEIGHT, _FORGETS = 12.0, 0.98
_MOST_COMPARED = 24


@dataclass(slots=True)
class LookupStatistics:
    """What guessing gave for one text.

    Attributes:
        verifies: runs in which guessed tokens were checked.
        proposed: tokens that were guessed.
        accepted: tokens of these that the model would have written too.
        steps: runs without a guess.
    """

    verifies: int = 0
    proposed: int = 0
    accepted: int = 0
    steps: int = 0

    @property
    def accepted_per_verify(self) -> float:
        """Tokens won by each run that checked a guess."""
        return self.accepted / self.verifies if self.verifies else 0.0


class PromptLookup:
    """The tokens of one text, prompt included, and guesses of how it goes on.

    A guess goes on where the text has been copying from; otherwise at the latest place where its last three tokens, or
    two, stand. Where a copy breaks off because a word is left out or put in another's place, it is taken up again with
    a token that stands shortly behind. How many tokens are guessed follows from how often the next one agreed after
    as many in a row, in this text and at first as in twelve rewritten and summarised texts, and from the price of
    checking one: 0.18 of a step. By the clock the same prompt would be guessed differently each time.

    Args:
        tokens: the prompt.
        most: tokens of the longest guess.
    """

    def __init__(self, tokens: Iterable[int], most: int) -> None:
        self._tokens: list[int] = []
        self._places: dict[tuple[int, ...], int] = {}
        self._most = max(0, most)
        self._source: int | None = None  # where the next token would be copied from
        self._agreed = 0  # tokens in a row that source and text have in common
        self._broken: int | None = None  # where the last copy broke off
        self._hits = [_WEIGHT * share for share in _AGREES]
        self._tries = [_WEIGHT] * len(_AGREES)
        self.statistics = LookupStatistics()
        for token in tokens:
            self._append(token)

    def propose(self, room: int) -> list[int]:
        """Up to ``room`` tokens that may come next; none where nothing fits, or where it would hardly pay."""
        source = self._find()
        if source is None:
            return []
        most = min(room, self._most, len(self._tokens) - source)
        best, best_gain, chance, won = 0, 1.0, 1.0, 1.0
        for size in range(1, most + 1):
            length = self._class(self._agreed + size - 1)
            chance *= self._hits[length] / self._tries[length]
            won += chance
            if won > best_gain * (1 + _PRICE * size):
                best, best_gain = size, won / (1 + _PRICE * size)
        return self._tokens[source : source + best]

    def written(self, tokens: list[int], proposed: int, accepted: int) -> None:
        """Take in what was really written: ``accepted`` of the ``proposed`` tokens, and what followed."""
        statistics = self.statistics
        if proposed:
            statistics.verifies += 1
            statistics.proposed += proposed
            statistics.accepted += accepted
        else:
            statistics.steps += 1
        for token in tokens:
            self._follow(token)
            self._append(token)

    def _follow(self, token: int) -> None:
        """Hold the next token against the source, guessed or not, and learn from it."""
        source = self._find()
        if source is not None:
            agrees = self._tokens[source] == token
            length = self._class(self._agreed)
            self._hits[length] = _FORGETS * self._hits[length] + agrees
            self._tries[length] = _FORGETS * self._tries[length] + 1
            if agrees:
                self._source, self._agreed = source + 1, self._agreed + 1
                return
            self._source, self._broken = None, source
        if self._broken is not None:
            behind = self._tokens[self._broken : self._broken + _NEAR]
            if token in behind:
                self._source, self._agreed = self._broken + behind.index(token) + 1, 1
                self._broken = None

    def _append(self, token: int) -> None:
        """Take a token in. The keys that end in the one before now have something that follows."""
        tokens, place = self._tokens, len(self._tokens)
        for size in _KEYS:
            if place >= size:
                self._places[tuple(tokens[place - size :])] = place
        tokens.append(token)

    def _find(self) -> int | None:
        tokens = self._tokens
        if self._source is not None and self._source < len(tokens):
            return self._source
        self._source = None
        for size in _KEYS:
            found = self._places.get(tuple(tokens[-size:]))
            if found is not None:
                self._source, self._agreed = found, size
                while (
                    self._agreed < min(found, _MOST_COMPARED)
                    and tokens[found - self._agreed - 1] == tokens[-self._agreed - 1]
                ):
                    self._agreed += 1
                break
        return self._source

    @staticmethod
    def _class(agreed: int) -> int:
        return max(0, bisect_right(_LENGTHS, agreed) - 1)
