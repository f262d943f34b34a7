"""Transcripts as a stream of turns: plain text with ``Name: words``, WebVTT and SubRip (SRT).

Which of the three it is, its content tells. Memory does not grow with the file: lines, turns and cues are cut where
they get long. In plain text a turn begins with a line such as::

    Anna Bell: We could begin.
    [00:12:03] Anna Bell: We could begin.
    Anna Bell (12:03): We could begin.
    Anna Bell  12:03            (and the words on the lines below, as meeting programs export them)

Lines without a name go on with the turn before; text before the first name has no speaker. A name is up to five words
that begin with capitals or digits (or any letters where there are no capitals); "Note:" and its like are none.

Subtitles are put together to sentences of one speaker, whom ``<v Name>`` or ``Name:`` names. A cue that does not
follow the format is counted and named, and its words are kept where it has some.

Format: WebVTT, https://www.w3.org/TR/webvtt1/; SubRip has no standard, so it is read leniently.
"""

from __future__ import annotations

import codecs
import io
import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ..errors import DataError, InputError
from .spoken_lines import text_turns
from .subtitles import cue_turns
from .turn import Format, TranscriptReport, Turn

_READ_AT_ONCE = 1 << 13  # bytes or characters
_LONGEST_LINE = 1 << 14  # characters
_LINES_LOOKED_AT = 100
_BEGINNINGS = (("%PDF-", "a PDF file"), ("{\\rtf", "an RTF file"), ("PK\x03\x04", "a zip or office file"))
_BLANKS = re.compile(r"[^\S\n]|[\x01-\x1f\x7f\ufeff\u200e\u200f]")


def read_transcript(
    source: str | os.PathLike[str] | BinaryIO, report: TranscriptReport | None = None
) -> Iterator[Turn]:
    """The turns of a file, read while they are asked for.

    Args:
        source: a path, or a file opened for bytes. UTF-8 with or without a byte order mark, or UTF-16 with one; any
            line endings.
        report: filled in while reading.

    Raises:
        DataError: the file cannot be read, or it is no text (while the turns are asked for).
    """
    return _read(source, TranscriptReport() if report is None else report)


def transcript_turns(text: str, report: TranscriptReport | None = None) -> Iterator[Turn]:
    """The turns of a text.

    Args:
        text: the whole transcript.
        report: filled in while reading.

    Raises:
        InputError: it is no text.
    """
    if not isinstance(text, str):
        raise InputError(f"a transcript is text; a {type(text).__name__} was given")
    return _turns(_sliced(text), "the text", TranscriptReport() if report is None else report)


def _read(source: str | os.PathLike[str] | BinaryIO, report: TranscriptReport) -> Iterator[Turn]:
    if not isinstance(source, str | os.PathLike):
        name = getattr(source, "name", None)  # of a file that was opened by its descriptor, a number
        yield from _turns(_decoded(source), name if isinstance(name, str) else "the file", report)
        return
    path = Path(source)
    try:
        with path.open("rb") as file:
            yield from _turns(_decoded(file), str(path), report)
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file; check the path") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}); check path and permissions") from None


def _decoded(file: BinaryIO) -> Iterator[str]:
    data = file.read(_READ_AT_ONCE)
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder(encoding)("strict"), translate=True)
    while data:
        yield decoder.decode(data)
        data = file.read(_READ_AT_ONCE)
    yield decoder.decode(b"", final=True)


def _sliced(text: str) -> Iterator[str]:
    decoder = io.IncrementalNewlineDecoder(None, translate=True)
    for place in range(0, len(text), _READ_AT_ONCE):
        yield decoder.decode(text[place : place + _READ_AT_ONCE])
    yield decoder.decode("", final=True)


def _turns(pieces: Iterator[str], name: str, report: TranscriptReport) -> Iterator[Turn]:
    lines = _lines(pieces, name)
    begun: list[tuple[int, str]] = []
    first: list[str] = []  # lines that are not blank, by which the format is known
    for number, line in lines:
        begun.append((number, line))
        if line.strip():
            first.append(line)
        if len(first) == 2 or len(begun) == _LINES_LOOKED_AT:
            break
    report.format = _format(first)
    read = text_turns if report.format == "text" else cue_turns
    for turn in read(itertools.chain(begun, lines), report):
        report.turns += 1
        yield turn


def _format(first: list[str]) -> Format:
    if not first:
        return "text"
    if re.match(r"WEBVTT(?:\s|$)", first[0]):
        return "webvtt"
    if "-->" in first[0] or (len(first) > 1 and first[0].strip().isdigit() and "-->" in first[1]):
        return "srt"
    return "text"


def _lines(pieces: Iterator[str], name: str) -> Iterator[tuple[int, str]]:
    """Lines with their numbers from 1, white space in them made blanks; a very long one comes in several."""
    number, rest, begins = 1, "", True
    while True:
        try:
            piece = next(pieces, None)
        except UnicodeDecodeError as error:
            raise DataError(
                f"{name}: not a text in {error.encoding.upper()} (near line {number}); an older text file can be "
                "converted with: iconv -f latin1 -t utf8"
            ) from None
        if piece is None:
            break
        if begins and piece:
            begins = False
            for beginning, kind in _BEGINNINGS:
                if piece.startswith(beginning):
                    raise DataError(f"{name}: this is {kind}, not a text; export the transcript as plain text")
        if "\0" in piece or not _is_text(piece):
            raise DataError(f"{name}: not a text (near line {number}); give plain text, WebVTT or SRT in UTF-8")
        *whole, rest = (rest + piece).split("\n")
        for line in whole:
            yield number, _BLANKS.sub(" ", line).rstrip()
            number += 1
        if len(rest) >= _LONGEST_LINE:
            cut = rest.rfind(" ") + 1 or len(rest)  # where possible no word is cut in two
            yield number, _BLANKS.sub(" ", rest[:cut]).rstrip()
            rest = rest[cut:]
    if rest:
        yield number, _BLANKS.sub(" ", rest).rstrip()


def _is_text(piece: str) -> bool:
    """Whether it can be written as UTF-8: no halves of surrogate pairs."""
    return piece.isascii() or not any("\ud800" <= character <= "\udfff" for character in piece)
