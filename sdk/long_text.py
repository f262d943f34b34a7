"""Texts longer than a student's context: cut into parts, summarised part by part, the summaries merged.

::

    turns ─split_turns─▶ parts ─summarise─▶ level 0  s s s s ...
                                            level 1     m       m  ...     each of up to ``fan_in`` of the level below
                                            level 2             m

Summaries are folded as a counter counts: when a level is full, its summaries become one of the level above, at the
highest level one of its own. So at most ``fan_in`` summaries of each level are held, and memory does not depend on the
length of the text: turns are taken from their source when a part needs them. The highest level's own merges let the
beginning of a very long text go through more summaries than its end; three levels of 8 cover 512 parts before that.

"Map-reduce" after Dean & Ghemawat (2004); the folding is that of a binomial counter (Vuillemin, "A Data Structure for
Manipulating Priority Queues", 1978).
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from ..errors import InputError, UsageError
from .sentences import sentences
from .transcripts import transcript_turns
from .turn import Turn

LEAST_PART = 16
"""Tokens that a part must have room for."""

FEW_WORDS = 5
"""A text with fewer words is its own summary."""

CountTokens = Callable[[str], int]


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a long text.

    Attributes:
        number: from 0.
        text: lines of ``speaker: sentences`` (without the name where it is not known); at most ``part_tokens`` tokens.
        start: seconds where its first turn begins, None where that is not known.
        speakers: who speaks in it, in the order of their first words.
        repeated: how many sentences at its beginning the part before ends with.
    """

    number: int
    text: str
    start: float | None
    speakers: tuple[str, ...]
    repeated: int


@dataclass(frozen=True, slots=True)
class LongSummary:
    """A summary that is ready.

    Attributes:
        text: the summary; "" where there was nothing to summarise.
        level: 0 for one part's, else how often summaries were merged into it.
        first_part, last_part: numbers of the parts that it covers.
        start: seconds where the first of them begins, None where that is not known.
        final: whether it is the summary of all; it comes last, and there is always one.
        reason: of the final one: ``merged``, ``one-part``, or, where nothing was summarised, ``short`` (the text is its
            own summary) or ``empty``.
    """

    text: str
    level: int
    first_part: int
    last_part: int
    start: float | None
    final: bool = False
    reason: Literal["", "merged", "one-part", "short", "empty"] = ""


@dataclass(frozen=True, slots=True)
class LongProgress:
    """How far summarising is: ``parts`` and ``merges`` done, ``characters`` of the turns read so far."""

    parts: int
    merges: int
    characters: int


@dataclass(frozen=True, slots=True)
class _Piece:
    """A sentence, or what of it fits into a part. ``cost``: tokens, roughly."""

    speaker: str
    start: float | None
    text: str
    cost: int


def split_turns(
    turns: str | Iterable[Turn], count_tokens: CountTokens, part_tokens: int, overlap_tokens: int = 0
) -> Iterator[Part]:
    """Cut a transcript into parts, at the ends of sentences.

    Sentences longer than a part are cut between words, words longer than a part between characters. Each turn is a line
    of its part; a turn that goes on in the next part has its speaker's name there again.

    Args:
        turns: the turns, or a text as :func:`~edgescribe.sdk.transcripts.transcript_turns` reads it.
        count_tokens: tokens of a text, with those that the student adds.
        part_tokens: the most tokens of a part; at least 16, and as many as the student's context has.
        overlap_tokens: about how many tokens of each part begin the next one, in whole sentences.

    Raises:
        InputError: what was given is no text and no turns (while the parts are asked for).
        UsageError: parts are too small, or overlap by half or more.
    """
    if part_tokens < LEAST_PART:
        raise UsageError(f"parts of {part_tokens} tokens are too small; {LEAST_PART} are the least")
    if not 0 <= overlap_tokens < part_tokens / 2:
        raise UsageError(f"parts of {part_tokens} tokens overlap by {overlap_tokens}; let it be less than half")
    added = count_tokens("")
    if added > part_tokens // 4:
        raise UsageError(f"the student adds {added} tokens to a text; parts of {part_tokens} leave too little room")
    return _parts(_turns_of(turns), count_tokens, part_tokens, overlap_tokens, added)


def _turns_of(source: str | Iterable[Turn]) -> Iterator[Turn]:
    if isinstance(source, str):
        yield from transcript_turns(source)
        return
    if isinstance(source, bytes | bytearray | memoryview) or not isinstance(source, Iterable):
        raise InputError(f"a text or a transcript's turns are summarised; a {type(source).__name__} was given")
    for turn in source:
        if not isinstance(turn, Turn):
            raise InputError(f"a text or a transcript's turns are summarised; a {type(turn).__name__} was among them")
        yield turn


def _parts(
    turns: Iterator[Turn], count_tokens: CountTokens, part_tokens: int, overlap_tokens: int, added: int
) -> Iterator[Part]:
    number, repeated = 0, 0
    held: list[_Piece] = []
    used = added
    for piece in _pieces(turns, count_tokens, part_tokens, added):
        pending = [piece]
        while pending:
            piece = pending.pop(0)
            cost = piece.cost + _naming_cost(held, piece, count_tokens, added)
            if held and (used + cost > part_tokens or count_tokens(_written([*held, piece])) > part_tokens):
                if len(held) > repeated:
                    yield _part(number, held, repeated)
                    number += 1
                    held = _overlap(held, overlap_tokens)
                else:
                    held = held[1:]  # nothing new fits behind so much of the part before
                repeated = len(held)
                used = count_tokens(_written(held)) if held else added
                pending.insert(0, piece)
            elif not held and count_tokens(_written([piece])) > part_tokens and len(piece.text) > 1:
                # tokens of a whole may be more than those of its pieces: halve it until it fits
                half = len(piece.text) // 2
                pending[:0] = [_Piece(piece.speaker, piece.start, text, piece.cost // 2 + 1)
                               for text in (piece.text[:half], piece.text[half:]) if text.strip()]  # fmt: skip
            else:
                held.append(piece)
                used += cost
    if len(held) > repeated:
        yield _part(number, held, repeated)


def _naming_cost(held: list[_Piece], piece: _Piece, count_tokens: CountTokens, added: int) -> int:
    named = piece.speaker and (not held or held[-1].speaker != piece.speaker)
    return max(0, count_tokens(f"{piece.speaker}: ") - added) if named else 0


def _part(number: int, pieces: list[_Piece], repeated: int) -> Part:
    speakers = dict.fromkeys(piece.speaker for piece in pieces if piece.speaker)
    return Part(number, _written(pieces), pieces[0].start, tuple(speakers), repeated)


def _written(pieces: list[_Piece]) -> str:
    lines: list[str] = []
    before: str | None = None
    for piece in pieces:
        if piece.speaker == before:
            lines[-1] += " " + piece.text
        else:
            lines.append(f"{piece.speaker}: {piece.text}" if piece.speaker else piece.text)
        before = piece.speaker
    return "\n".join(lines)


def _overlap(pieces: list[_Piece], overlap_tokens: int) -> list[_Piece]:
    kept = 0
    for place in range(len(pieces) - 1, 0, -1):
        kept += pieces[place].cost
        if kept > overlap_tokens:
            return pieces[place + 1 :]
    return pieces[1:]


def _pieces(turns: Iterator[Turn], count_tokens: CountTokens, part_tokens: int, added: int) -> Iterator[_Piece]:
    for turn in turns:
        speaker = _short_name(turn.speaker, count_tokens, part_tokens // 4)
        room = part_tokens - added - (count_tokens(f"{speaker}: ") - added if speaker else 0) - 1
        start = turn.start
        for sentence in sentences(turn.text):
            cost = max(1, count_tokens(sentence) - added)
            if cost <= room:
                yield _Piece(speaker, start, sentence, cost)
            else:
                for text in _cut(sentence, count_tokens, room, added):
                    yield _Piece(speaker, start, text, max(1, count_tokens(text) - added))


def _short_name(speaker: str, count_tokens: CountTokens, most: int) -> str:
    name = " ".join(speaker.split())[:100]
    while name and count_tokens(f"{name}: ") > most:
        name = name[: len(name) // 2].rstrip()
    return name


def _cut(sentence: str, count_tokens: CountTokens, room: int, added: int) -> Iterator[str]:
    """Pieces of at most ``room`` tokens, between words where that is possible."""
    rest = sentence
    while rest:
        # hardly any tokenizer has tokens of more characters on average
        window = rest[: 8 * room]
        length = _longest(window, count_tokens, room + added)
        if length < len(rest):
            blank = max(rest.rfind(" ", 0, length + 1), rest.rfind("\n", 0, length + 1))
            length = blank if blank > 0 else _whole_characters(rest, length)
        if text := rest[:length].strip():
            yield text
        rest = rest[length:].lstrip()


def _longest(text: str, count_tokens: CountTokens, most: int) -> int:
    """Characters of the longest beginning that has at most so many tokens; at least 1."""
    low, high = 1, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if count_tokens(text[:middle]) <= most:
            low = middle
        else:
            high = middle - 1
    return low


def _whole_characters(text: str, length: int) -> int:
    """A place near before ``length`` where no accent or vowel sign is cut off its letter."""
    place = length
    while place > 1 and length - place < 8 and unicodedata.combining(text[place : place + 1] or "a"):
        place -= 1
    return place


def summarize_long(
    turns: str | Iterable[Turn],
    summarize: Callable[[str], str],
    count_tokens: CountTokens,
    *,
    part_tokens: int,
    overlap_tokens: int = 0,
    fan_in: int = 8,
    max_levels: int = 3,
    on_progress: Callable[[LongProgress], None] | None = None,
) -> Iterator[LongSummary]:
    """Summarise a text of any length; summaries of parts and merged ones come as they are ready, that of all last.

    Args:
        turns: turns, which are read while parts are summarised, or a text.
        summarize: the summary of a text of at most ``part_tokens`` tokens.
        count_tokens: tokens of a text, with those that the student adds.
        part_tokens: the most tokens of what is summarised at a time.
        overlap_tokens: see :func:`split_turns`.
        fan_in: the most summaries that are merged at a time; fewer where their tokens are too many.
        max_levels: how often a summary may be merged into another before merging goes on within the highest level.
        on_progress: called after each part and each merge.

    Yields:
        Summaries; the last one is ``final``.

    Raises:
        InputError: what was given is no text and no turns.
        UsageError: see :func:`split_turns`; ``fan_in`` is below 2 or ``max_levels`` below 1.
    """
    if fan_in < 2 or max_levels < 1:
        raise UsageError(f"summaries are merged {fan_in} at a time over {max_levels} levels; give at least 2 and 1")
    characters = 0

    def counted() -> Iterator[Turn]:
        nonlocal characters
        for turn in _turns_of(turns):
            characters += len(turn.text)
            yield turn

    parts = split_turns(counted(), count_tokens, part_tokens, overlap_tokens)
    return _Folding(summarize, count_tokens, part_tokens, fan_in, max_levels).run(
        parts, lambda done, merges: on_progress(LongProgress(done, merges, characters)) if on_progress else None
    )


class _Folding:
    """Summaries that wait to be merged, level by level; those of a level are later than all above it."""

    def __init__(
        self,
        summarize: Callable[[str], str],
        count_tokens: CountTokens,
        part_tokens: int,
        fan_in: int,
        max_levels: int,
    ) -> None:
        self._summarize, self._count = summarize, count_tokens
        self._part_tokens, self._fan_in, self._top = part_tokens, fan_in, max_levels
        self._added = count_tokens("")
        self._waiting: list[list[LongSummary]] = [[] for _ in range(max_levels + 1)]
        self._merges = 0

    def run(self, parts: Iterator[Part], tell: Callable[[int, int], None]) -> Iterator[LongSummary]:
        first = next(parts, None)
        if first is None:
            yield LongSummary("", 0, 0, 0, None, True, "empty")
            return
        second = next(parts, None)
        if second is None and _has_few_words(first.text):
            yield LongSummary(first.text, 0, 0, 0, first.start, True, "short")
            return
        done = 0
        for part in itertools.chain((first,) if second is None else (first, second), parts):
            summary = self._within(self._summarize(part.text).strip(), self._part_tokens // 2)
            yield from self._add(LongSummary(summary, 0, part.number, part.number, part.start))
            done += 1
            tell(done, self._merges)
        yield from self._finish(done, tell)

    def _add(self, made: LongSummary) -> Iterator[LongSummary]:
        """Let a summary wait on its level; when that is full, what waits there is merged first."""
        yield made
        if not made.text:
            return
        waiting = self._waiting[made.level]
        if len(waiting) >= 2 and self._together([*waiting, made]) <= len(waiting):
            self._waiting[made.level] = []
            yield from self._add(self._merged(waiting))
        self._waiting[made.level].append(made)

    def _finish(self, done: int, tell: Callable[[int, int], None]) -> Iterator[LongSummary]:
        """Merge what waits on all levels, from the lowest up."""
        rest: list[LongSummary] = []
        held_back: LongSummary | None = None  # the last one is told as the final one
        for waiting in self._waiting:
            rest = [*waiting, *rest]
            while len(rest) > 1:
                if held_back is not None:
                    yield held_back
                count = self._together(rest)
                held_back = self._merged(rest[:count])
                rest = [*([held_back] if held_back.text else []), *rest[count:]]
                tell(done, self._merges)
        if not rest:
            yield LongSummary("", 0, 0, max(0, done - 1), None, True, "empty")
            return
        yield replace(rest[0], final=True, reason="merged" if rest[0].level else "one-part")

    def _together(self, summaries: list[LongSummary]) -> int:
        """How many of the first may be merged at a time: at least 2, for none has more than half of the tokens."""
        count = 2
        while (
            count < min(len(summaries), self._fan_in)
            and self._count(_joined(summaries[: count + 1])) <= self._part_tokens
        ):
            count += 1
        return count

    def _merged(self, summaries: list[LongSummary]) -> LongSummary:
        text = self._within(_joined(summaries), self._part_tokens)
        made = self._within(self._summarize(text).strip(), self._part_tokens // 2)
        self._merges += 1
        first, last = summaries[0], summaries[-1]
        level = min(self._top, 1 + max(summary.level for summary in summaries))
        return LongSummary(made, level, first.first_part, last.last_part, first.start)

    def _within(self, text: str, tokens: int) -> str:
        """The text, or its beginning that has at most so many tokens."""
        if self._count(text) <= tokens:
            return text
        return next(_cut(text, self._count, tokens - self._added, self._added), "")


def _joined(summaries: list[LongSummary]) -> str:
    return " ".join(summary.text for summary in summaries)


def _has_few_words(text: str) -> bool:
    unspaced = len(re.findall("[\u3040-\u30ff\u3400-\u9fff\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]", text))
    return len(re.findall(r"\w+", text)) < FEW_WORDS and unspaced < 3 * FEW_WORDS
