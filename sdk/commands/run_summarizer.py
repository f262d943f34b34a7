"""``edgescribe run`` with a summariser: each text summarised as it is, whole files in parts where they are long."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from ..console import Result, figure, is_json, note, warn
from .texts import NumberedText

if TYPE_CHECKING:
    from ..long_text import LongProgress, LongSummary
    from ..summarizer import Summarizer
    from ..summary_run import Summary
    from ..turn import Turn

SUMMARY_OPTIONS = (
    "max_new_tokens", "min_new_tokens", "num_beams", "length_penalty", "no_repeat_ngram_size", "temperature", "seed",
    "stop", "lookup",
)  # fmt: skip
"""Options of the command that are those of :class:`~edgescribe.sdk.summarizer.SummaryOptions`."""


@dataclass(frozen=True)
class Document:
    """A whole file, or what comes through a pipe: one text, a transcript or any other."""

    source: Path | BinaryIO

    def __str__(self) -> str:
        return str(self.source) if isinstance(self.source, Path) else "stdin"


def summarize_texts(
    bundle: Path,
    texts: Iterable[NumberedText | Document],
    opened: Mapping[str, Any],
    *,
    long: bool | None,
    options: Mapping[str, Any],
) -> Iterator[Result]:
    """Summarise each text.

    Args:
        opened: options of :func:`~edgescribe.sdk.load.load_summarizer`.
        long: summarise in parts, or never; None does so for documents that are too long to be read at once.
        options: as of :meth:`~edgescribe.sdk.summarizer.Summarizer.summarize`.
    """
    from ..load import load_summarizer

    with load_summarizer(bundle, **opened) as summarizer:
        used = summarizer.effective
        note(
            f"{summarizer.info.name}: {used.runtime} {used.engine_version} on {used.device}, "
            f"{summarizer.info.precision}, {used.threads} thread{'s' if used.threads != 1 else ''}, "
            f"{summarizer.source_context} tokens read at once"
        )
        for row in texts:
            if isinstance(row, Document):
                yield from _document(summarizer, row, long, options)
            elif long:
                yield from _in_parts(summarizer, row.text, {"line": row.line}, options)
            else:
                yield _summarized(summarizer, row.text, {"line": row.line, "text": row.text}, options)


def _document(
    summarizer: Summarizer, document: Document, long: bool | None, options: Mapping[str, Any]
) -> Iterator[Result]:
    from ..transcripts import read_transcript
    from ..turn import TranscriptReport

    report = TranscriptReport()
    turns = read_transcript(document.source, report)
    told = {"file": str(document)}
    begun: list[Turn] = []
    if long is None:
        begun, fits = _beginning(summarizer, turns)
        long = not fits
    if long:
        yield from _in_parts(summarizer, itertools.chain(begun, turns), told, options)
    else:
        begun.extend(turns)
        yield _summarized(summarizer, "\n".join(map(_line, begun)), told, options)
    if report.faults:
        warn(f"{document}: {report.faults} cues do not follow the format ({'; '.join(report.examples)})")


def _beginning(summarizer: Summarizer, turns: Iterator[Turn]) -> tuple[list[Turn], bool]:
    """Turns from the first on, all of them or more than can be read at once, and whether they can be."""
    added = len(summarizer.source_tokens(""))
    begun: list[Turn] = []
    tokens = added
    for turn in turns:
        begun.append(turn)
        tokens += len(summarizer.source_tokens(_line(turn))) - added
        if tokens > 2 * summarizer.source_context:
            return begun, False
    whole = summarizer.source_tokens("\n".join(map(_line, begun)))
    return begun, len(whole) <= summarizer.source_context


def _line(turn: Turn) -> str:
    return f"{turn.speaker}: {turn.text}" if turn.speaker else turn.text


def _summarized(summarizer: Summarizer, text: str, told: dict[str, Any], options: Mapping[str, Any]) -> Result:
    """Summarise, showing each piece as it comes unless JSON is asked for. Ctrl-C ends this text where it is shown."""
    quiet = is_json()
    with closing(summarizer.stream(text, **options)) as writing:
        try:
            for piece in writing:
                if not quiet:
                    click.echo(piece, nl=False)
        except KeyboardInterrupt:
            if quiet or not sys.stdin.isatty():
                raise
        writing.close()
        found = writing.result
    if not quiet:
        note(f"\n{_figures(found)}")
    return Result(told | _data(found), "")


def _figures(found: Summary) -> str:
    count = f"{len(found.tokens)} token{'s' if len(found.tokens) != 1 else ''} of {found.source_tokens}"
    if not found.tokens:
        return count
    first, rate = figure(found.timings.first_token * 1000), figure(found.tokens_per_s)
    return f"{count}, the first after {first} ms, {rate} tokens/s with reading"


def _data(found: Summary) -> dict[str, Any]:
    return {
        "summary": found.text,
        "finish_reason": found.finish_reason,
        "source_tokens": found.source_tokens,
        "new_tokens": len(found.tokens),
        "num_beams": found.num_beams,
        "score": found.score,
        "seed": found.seed,
        "read_ms": found.timings.read * 1000,
        "first_token_ms": found.timings.first_token * 1000,
        "total_ms": found.timings.total * 1000,
        "tokens_per_s": found.tokens_per_s,
    }


def _in_parts(
    summarizer: Summarizer, text: str | Iterable[Turn], told: dict[str, Any], options: Mapping[str, Any]
) -> Iterator[Result]:
    """Summarise a long text: summaries of parts on stderr, or as lines of JSON, and that of all at last."""
    done: LongProgress | None = None

    def progress(now: LongProgress) -> None:
        nonlocal done
        done = now

    for found in summarizer.summarize_long(text, on_progress=progress, **options):
        if is_json() or found.final:
            yield Result(told | _long_data(found), found.text)
        else:
            note(f"{_place(found)}: {found.text}")
    if done is not None and not is_json():
        note(f"{done.parts} parts, {done.merges} merges, {done.characters:,} characters")


def _place(found: LongSummary) -> str:
    parts = f"part {found.first_part + 1}" if found.first_part == found.last_part else (
        f"parts {found.first_part + 1} to {found.last_part + 1}"
    )  # fmt: skip
    if found.start is None:
        return parts
    minutes, seconds = divmod(int(found.start), 60)
    return f"{parts}, from {minutes // 60}:{minutes % 60:02}:{seconds:02}"


def _long_data(found: LongSummary) -> dict[str, Any]:
    return {
        "summary": found.text,
        "level": found.level,
        "first_part": found.first_part,
        "last_part": found.last_part,
        "start": found.start,
        "final": found.final,
        "reason": found.reason,
    }
