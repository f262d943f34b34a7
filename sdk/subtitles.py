"""Cues of WebVTT and SubRip files, put together to what each speaker says."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from .spoken_lines import name_and_words, plain_name
from .turn import LONGEST_TURN, TranscriptReport, Turn, seconds

_TIMING = re.compile(
    r"^\s*(?P<start>(?:\d{1,4}:)?\d{1,2}:\d{2}[.,]\d{1,3})\s*-->\s*(?:\d{1,4}:)?\d{1,2}:\d{2}[.,]\d{1,3}(?:\s.*)?$"
)
_BLOCKS = re.compile(r"^(?:NOTE|STYLE|REGION)(?:\s|$)|^WEBVTT|^X-TIMESTAMP-MAP")
_VOICE = re.compile(r"<v(?:\.[^\s>]*)?\s+([^>]*)>")
_MARKUP = re.compile(r"</?[a-z][^<>]{0,200}>|<\d[\d:.]*>|\{\\[^{}]{0,100}\}", re.IGNORECASE)
_SENTENCE_LENGTH = 120  # characters from which a turn may end with a sentence, so that times stay near
_ENDED = re.compile(r"[.!?…。！？][\"'”’)\]»」』]*$")


@dataclass
class _Cue:
    """``start``: seconds, None where its time cannot be read; ``timed``: whether its line of times has come."""

    line: int
    start: float | None = None
    timed: bool = False
    payload: list[str] = field(default_factory=list)
    length: int = 0
    cut: bool = False


def cue_turns(lines: Iterable[tuple[int, str]], report: TranscriptReport) -> Iterator[Turn]:
    """The turns of numbered lines of WebVTT or SubRip.

    Pieces of cues, put together while the speaker is the same and the sentence goes on.
    """
    speaker, start, held, length = "", None, list[str](), 0
    for name, begin, words in _pieces(_cues(lines, report)):
        ended = length >= _SENTENCE_LENGTH and _ENDED.search(held[-1])
        if held and ((name is not None and name != speaker) or ended or length > LONGEST_TURN):
            yield Turn(speaker, start, " ".join(held))
            held, length = [], 0
        if name is not None:
            speaker = name
        if not held:
            start = begin
        held.append(words)
        length += len(words)
    if held:
        yield Turn(speaker, start, " ".join(held))


def _cues(lines: Iterable[tuple[int, str]], report: TranscriptReport) -> Iterator[_Cue]:
    cue: _Cue | None = None
    skipping = False
    for number, line in lines:
        if not line.strip():
            if cue is not None:
                yield from _finished(cue, report)
            cue, skipping = None, False
            continue
        if skipping and "-->" not in line:
            continue
        if "-->" in line:
            skipping = False
            before = cue
            if before is not None and before.payload and (before.timed is False or before.payload[-1].isdigit()):
                before.payload.pop()  # the cue's name or number
            if before is not None and (before.timed or before.payload):
                yield from _finished(before, report)
            found = _TIMING.match(line)
            cue = _Cue(number, seconds(found["start"]) if found else None, timed=True)
            if found is None:
                report.fault(number, f"no times are in {line.strip()[:60]!r}")
            continue
        if cue is None:
            if _BLOCKS.match(line):
                skipping = True
                continue
            cue = _Cue(number)
        cue.payload.append(line.strip())
        cue.length += len(line)
        if cue.length > LONGEST_TURN:
            yield from _finished(cue, report)
            cue = _Cue(number, timed=cue.timed, cut=True)
    if cue is not None:
        yield from _finished(cue, report)


def _finished(cue: _Cue, report: TranscriptReport) -> Iterator[_Cue]:
    if not cue.timed and not cue.cut and cue.payload:
        report.fault(cue.line, f"no times come before {cue.payload[0][:60]!r}")
        if all(line.isdigit() for line in cue.payload):
            return
    if cue.payload:
        yield cue


def _pieces(cues: Iterable[_Cue]) -> Iterator[tuple[str | None, float | None, str]]:
    """Speaker (None where the cue does not say), start, words."""
    for cue in cues:
        payload = cue.payload
        text = "\n".join(payload)
        voices = _VOICE.split(text)
        for place in range(0, len(voices), 2):
            name = plain_name(html.unescape(voices[place - 1])) if place else None
            for line in voices[place].split("\n"):
                words = " ".join(html.unescape(_MARKUP.sub("", line)).split())
                named = name_and_words(words) if not place else None
                if named is not None:
                    name, words = named[0], named[2]
                if words:
                    yield name or None, cue.start, words
