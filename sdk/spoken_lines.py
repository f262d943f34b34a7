"""Plain text in which lines begin with who speaks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from .turn import LONGEST_TURN, TranscriptReport, Turn, seconds

_LONGEST_NAMING = 200  # characters in which time, name and colon stand
_CLOCK = r"\d{1,3}:\d{2}(?::\d{2})?(?:[.,]\d{1,3})?"
_PARTICLES = "van|von|vom|der|den|de|du|des|da|dos|di|del|della|la|le|el|al|bin|ibn|ben|ter|zu|zum|y|und|and"
_NAME_WORD = r"(?:[^\W\d_][\w'’.&-]*|\d{1,3}|#\w+#|\([^():：]{1,30}\))"
_NAME = rf"{_NAME_WORD}(?: {_NAME_WORD}){{0,4}}"
_SPOKEN = re.compile(
    rf"^\W{{0,4}}?(?:[\[(]?(?P<before>{_CLOCK})[\])]?\s*[-–—:]?\s*)?\**(?P<name>{_NAME})\**"
    rf"(?:\s*[\[(](?P<after>{_CLOCK})[\])])?\s?(?:：|:\**(?=\s|$))\**\s*(?P<words>.*)$"
)
_HEADED = re.compile(rf"^(?P<name>{_NAME})\s+[\[(]?(?P<after>{_CLOCK})[\])]?$|^[\[(]?(?P<alone>{_CLOCK})[\])]?$")
_TIMED = re.compile(rf"^[\[(](?P<before>{_CLOCK})[\])]\s*(?P<words>.*)$")
_NO_SPEAKER_WORDS = (
    "note notes agenda date time subject topic topics decision decisions action actions todo todos item items "
    "participants attendees present absent apologies location title summary re fwd cc from to ps nb warning example "
    "examples question answer step conclusion result results important update status next "
    "notiz thema themen datum zeit ort beschluss beschlüsse aufgabe aufgaben teilnehmer anwesend betreff "
    "zusammenfassung beispiel wichtig frage antwort ergebnis protokoll tagesordnung "
    "ordre sujet lieu heure décision décisions participants présents résumé exemple question réponse "
    "议程 日期 时间 地点 主题 决定 决议 参会人员 参会人 出席 缺席 备注 行动项 待办 总结 会议 问题"
)
_NO_SPEAKERS = frozenset(_NO_SPEAKER_WORDS.split())


def text_turns(lines: Iterable[tuple[int, str]], report: TranscriptReport) -> Iterator[Turn]:
    """The turns of numbered lines of plain text. There are no faults in it."""
    speaker, start = "", None
    held: list[str] = []
    length = 0
    for _, line in lines:
        stripped = line.strip()
        if not stripped:
            continue
        found = _spoken(stripped)
        words = stripped
        if found is not None or length > LONGEST_TURN:
            if held:
                yield Turn(speaker, start, " ".join(held))
            held, length = [], 0
            if found is None:
                start = None  # of the rest of a long turn it is not known
            else:
                speaker = speaker if found[0] is None else found[0]
                start, words = found[1], found[2]
        if words:
            held.append(words)
            length += len(words)
    if held:
        yield Turn(speaker, start, " ".join(held))


def _spoken(line: str) -> tuple[str | None, float | None, str] | None:
    """Speaker (None: the one before), start and words of a line that begins a turn; else None."""
    named = name_and_words(line)
    if named is not None:
        return named
    headed = _HEADED.match(line) if len(line) < 100 else None
    if headed is not None and headed["alone"]:
        return None, seconds(headed["alone"]), ""
    if headed is not None and _is_name(headed["name"]):
        return plain_name(headed["name"]), seconds(headed["after"]), ""
    timed = _TIMED.match(line)
    if timed is not None:
        return None, seconds(timed["before"]), timed["words"].strip()
    return None


def name_and_words(line: str) -> tuple[str, float | None, str] | None:
    """Speaker, start and words of a line such as ``Anna Bell (12:03): Good morning.``; None where no name is first."""
    found = _SPOKEN.match(line[:_LONGEST_NAMING])
    if found is None or not _is_name(found["name"]):
        return None
    return plain_name(found["name"]), seconds(found["before"] or found["after"]), line[found.start("words") :].strip()


def _is_name(name: str) -> bool:
    if len(name) > 60:
        return False
    words = re.sub(r"\([^()]*\)", "", name).split()
    if not words or words[0].casefold() in _NO_SPEAKERS:
        return False
    particles = _PARTICLES.split("|")
    first = words[0][0]
    if first.isdigit() or (words[0] in particles and len(words) == 1):
        return False
    return all(word in particles or word[0].isdigit() or not word[0].islower() for word in words)


def plain_name(name: str) -> str:
    """A name with single blanks and without the signs that data sets put around it."""
    return " ".join(name.replace("#", "").split())
