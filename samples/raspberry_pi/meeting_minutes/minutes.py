"""Minutes of a meeting: who spoke, summaries by parts and of the whole, decisions, action items.

The transcript is read once, turn by turn, while it is summarised, so that memory does not depend on its length.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import Protocol

import edgescribe
from cues import find_task, is_decision

MOST_FOUND = 200
"""Decisions and action items kept; a transcript with more of them is none of a meeting."""

MOST_PEOPLE = 200
MOST_SECTIONS = 500


class Summarizes(Protocol):
    """What is asked of a summariser; :class:`edgescribe.Summarizer` has it."""

    def summarize_long(
        self,
        text: Iterable[edgescribe.Turn],
        *,
        on_progress: Callable[[edgescribe.LongProgress], None] | None = None,
    ) -> Iterator[edgescribe.LongSummary]:
        """Summaries of parts and of the whole as they are ready."""


@dataclass(frozen=True, slots=True)
class Quote:
    """A sentence of the transcript. ``start``: seconds where its turn begins, None where that is not known."""

    speaker: str
    start: float | None
    text: str


@dataclass(frozen=True, slots=True)
class Action:
    """Something to do. ``who`` and ``due`` are "" where the sentence does not say; ``who`` need not have spoken."""

    who: str
    what: str
    due: str
    quote: Quote


@dataclass(frozen=True, slots=True)
class Section:
    """The summary of one part of the meeting."""

    start: float | None
    text: str


@dataclass
class Minutes:
    """All that the minutes say.

    Attributes:
        title: of the meeting.
        participants: who spoke, in the order of their first words.
        length: seconds where the last turn begins, None where times are not known.
        summary: of the whole; "" where there was nothing to summarise.
        sections: the parts' summaries, where there is more than one part.
        decisions: sentences that are worded as one.
        actions: sentences that hand out or take on a task.
        left_out: decisions and action items over the most that are kept.
        faults: subtitles that do not follow their format, with examples.
        reason: how the summary came about (:class:`edgescribe.LongSummary`).
    """

    title: str
    participants: list[str] = field(default_factory=list)
    length: float | None = None
    summary: str = ""
    sections: list[Section] = field(default_factory=list)
    decisions: list[Quote] = field(default_factory=list)
    actions: list[Action] = field(default_factory=list)
    left_out: int = 0
    faults: int = 0
    examples: list[str] = field(default_factory=list)
    reason: str = ""


class MinuteTaker:
    """Takes the minutes of one transcript.

    Args:
        title: of the meeting.
        turns: the transcript.
        report: what the turns' reader fills in.
        summarizer: writes the summaries.
    """

    def __init__(
        self,
        title: str,
        turns: Iterable[edgescribe.Turn],
        report: edgescribe.TranscriptReport,
        summarizer: Summarizes,
    ) -> None:
        self.minutes = Minutes(title)
        self._turns, self._report, self._summarizer = turns, report, summarizer
        self._people: dict[str, str] = {}

    def run(
        self, on_progress: Callable[[edgescribe.LongProgress], None] | None = None
    ) -> Iterator[edgescribe.LongSummary]:
        """Read and summarise; summaries come as they are ready, and after the last one ``minutes`` is whole.

        Raises:
            edgescribe.InputError: the transcript is no text.
            edgescribe.EdgescribeError: the engine failed.
        """
        minutes = self.minutes
        for summary in self._summarizer.summarize_long(self._heard(), on_progress=on_progress):
            if summary.final:
                minutes.summary, minutes.reason = summary.text, summary.reason
            elif summary.level == 0 and summary.text and len(minutes.sections) < MOST_SECTIONS:
                minutes.sections.append(Section(summary.start, summary.text))
            yield summary
        if minutes.reason != "merged":
            minutes.sections.clear()
        minutes.participants = list(self._people.values())
        minutes.actions = [replace(action, who=self._full_name(action.who)) for action in minutes.actions]
        minutes.faults, minutes.examples = self._report.faults, list(self._report.examples)

    def _full_name(self, who: str) -> str:
        """A speaker's whole name where ``who`` is its first word, and no other speaker's."""
        named = [name for name in self._people.values() if name.split()[0].casefold() == who.casefold()]
        return named[0] if len(named) == 1 else who

    def _heard(self) -> Iterator[edgescribe.Turn]:
        """The turns, looked through on their way."""
        minutes = self.minutes
        for turn in self._turns:
            if turn.start is not None:
                minutes.length = max(turn.start, minutes.length or 0.0)
            if turn.speaker and len(self._people) < MOST_PEOPLE:
                self._people.setdefault(turn.speaker.casefold(), turn.speaker)
            for sentence in edgescribe.sentences(turn.text):
                self._look_at(sentence, turn)
            yield turn

    def _look_at(self, sentence: str, turn: edgescribe.Turn) -> None:
        if len(sentence) > 1000:
            return  # words without a full stop; nobody would quote them
        minutes = self.minutes
        quote = Quote(turn.speaker, turn.start, sentence)
        if is_decision(sentence):
            if len(minutes.decisions) < MOST_FOUND:
                minutes.decisions.append(quote)
            else:
                minutes.left_out += 1
            return
        task = find_task(sentence, turn.speaker)
        if task is not None:
            if len(minutes.actions) < MOST_FOUND:
                minutes.actions.append(Action(task.who, task.what, task.due, quote))
            else:
                minutes.left_out += 1


def title_of(name: str) -> str:
    """A meeting's title by its transcript's file name."""
    stem = PurePath(name).name.rpartition(".")[0] or PurePath(name).name
    title = " ".join(re.sub(r"[_\s]+|(?<!\d)-|-(?!\d)", " ", stem).split())
    return title[:1].upper() + title[1:] if title else "Meeting"


def clock(seconds: float) -> str:
    """``H:MM:SS``."""
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
