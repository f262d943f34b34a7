"""What a transcript is made of: turns, and what became of it while it was read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

LONGEST_TURN = 2000
"""Characters after which a turn is cut at the end of a line or a cue; its rest is a turn of the same speaker."""

_EXAMPLES = 5

Format = Literal["text", "webvtt", "srt"]


@dataclass(frozen=True, slots=True)
class Turn:
    """What one speaker says at a stretch.

    Attributes:
        speaker: the name, "" where it is not known.
        start: seconds from the beginning, None where it is not known.
        text: the words, without line breaks; never blank.
    """

    speaker: str
    start: float | None
    text: str


@dataclass
class TranscriptReport:
    """What was read; grows while a transcript is read.

    Attributes:
        format: what it is, known when the first turn is there.
        turns: how many turns there were.
        faults: how many cues do not follow the format.
        examples: the first of them, as ``line N: what is wrong``.
    """

    format: Format = "text"
    turns: int = 0
    faults: int = 0
    examples: list[str] = field(default_factory=list)

    def fault(self, line: int, what: str) -> None:
        """Count a fault."""
        self.faults += 1
        if len(self.examples) < _EXAMPLES:
            self.examples.append(f"line {line}: {what}")


def seconds(clock: str | None) -> float | None:
    """Seconds of ``H:MM:SS.mmm``, ``MM:SS,mmm`` or ``MM:SS``; None for None or ""."""
    if not clock:
        return None
    total = 0.0
    for part in clock.replace(",", ".").split(":"):
        total = 60 * total + float(part)
    return total
