"""Prompt lookup: guesses the next tokens by copying what followed the same tokens earlier in the text.

After Saxena, "Prompt Lookup Decoding" (2023): rewriting and summarising copy much of the prompt. The model checks a
guess in one run, so that a wrong one costs time and never changes the text.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

LONGEST_KEY = 3
SHORTEST_KEY = 2
_PRICE = 0.2
_MOST_PAUSE = 32


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

    A guess goes on where the last accepted one was being copied from, otherwise at the latest place of the last
    ``LONGEST_KEY`` tokens, or fewer. How many tokens are guessed follows from how many were accepted before, at the
    fixed price of a fifth of a step for each (measured: 4 tokens cost 1.5 steps, 8 cost 2.3): by the clock, the
    same prompt would be guessed differently each time.

    Args:
        tokens: the prompt.
        most: tokens of the longest guess.
    """

    def __init__(self, tokens: Iterable[int], most: int) -> None:
        self._tokens: list[int] = []
        self._places: dict[tuple[int, ...], int] = {}
        self._most = max(0, most)
        self._source: int | None = None  # where the next token would be copied from
        self._rate = 0.6  # share of guessed tokens that are accepted, one after the other
        self._pause = self._waits = 0
        self.statistics = LookupStatistics()
        for token in tokens:
            self._append(token)

    def _append(self, token: int) -> None:
        """Take a token in. The keys that end in the one before now have something that follows."""
        tokens, place = self._tokens, len(self._tokens)
        for size in range(SHORTEST_KEY, min(LONGEST_KEY, place) + 1):
            self._places[tuple(tokens[place - size :])] = place
        tokens.append(token)

    def propose(self, room: int) -> list[int]:
        """Up to ``room`` tokens that may come next; none where nothing fits or guessing did not pay lately."""
        self._source = self._find()
        most = min(room, self._most)
        if self._source is None or most < 1:
            return []
        if self._waits:
            self._waits -= 1
            return []
        return self._tokens[self._source : self._source + min(most, self._paying())]

    def written(self, tokens: list[int], proposed: int, accepted: int) -> None:
        """Take in what was really written: ``accepted`` of the ``proposed`` tokens, and what followed."""
        statistics = self.statistics
        if proposed:
            statistics.verifies += 1
            statistics.proposed += proposed
            statistics.accepted += accepted
            self._learn(proposed, accepted)
        else:
            statistics.steps += 1
            source = self._source
            if source is not None and source < len(self._tokens) and tokens[:1] == [self._tokens[source]]:
                self._learn(1, 1)  # a guess that was held back would have been right
        for token in tokens:
            if self._source is not None:
                # a copied text may leave a word out or change one: the source moves on just with tokens that agree
                agrees = self._source < len(self._tokens) and self._tokens[self._source] == token
                self._source = self._source + 1 if agrees else None
            self._append(token)

    def _find(self) -> int | None:
        if self._source is not None and self._source < len(self._tokens):
            return self._source
        tokens = self._tokens
        for size in range(min(LONGEST_KEY, len(tokens)), SHORTEST_KEY - 1, -1):
            found = self._places.get(tuple(tokens[-size:]))
            if found is not None:
                return found
        return None

    def _learn(self, proposed: int, accepted: int) -> None:
        tried = accepted + (accepted < proposed)
        weight = min(0.5, 0.12 * tried)
        self._rate += weight * (accepted / tried - self._rate)
        if accepted:
            self._pause = self._waits = 0
        else:
            self._pause = min(_MOST_PAUSE, max(1, 2 * self._pause))
            if self._rate < 0.5:
                self._waits = self._pause

    def _paying(self) -> int:
        """The number of tokens whose check is expected to win most tokens for its price."""
        rate = min(0.97, max(0.3, self._rate))
        best, best_gain, chance, won, size = 1, 0.0, 1.0, 1.0, 0
        while size < self._most:
            size += 1
            chance *= rate
            won += chance
            gain = won / (1 + _PRICE * size)
            if gain > best_gain:
                best, best_gain = size, gain
        return best
