"""Texts that a command is given: a data file (``.jsonl``, ``.csv``, ``.gz`` of either), else one text a line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

from ...errors import DataError

LONGEST_LINE = 8 << 20
"""Bytes; a longer line is most likely in a file that is no text."""


class NumberedText(NamedTuple):
    """A text and the line where it stands, counted from 1."""

    line: int
    text: str


def read_texts(source: Path | IO[bytes], on_bad_rows: Callable[[str], None]) -> Iterator[NumberedText]:
    """Read texts one by one; memory does not grow with the source. Blank lines of plain text are passed over.

    Args:
        source: a file, or an open binary stream (a pipe) with a text on each line.
        on_bad_rows: told after the last row which rows of a data file were left out, if any.

    Raises:
        DataError: the source cannot be read, is not UTF-8, or more than 1 % of a data file's rows are bad.
    """
    from ..labelled_text import SUFFIXES, DataReport, read_rows

    if not isinstance(source, Path):
        yield from _read_lines(source, "stdin")
    elif source.name.lower().endswith(SUFFIXES):
        report = DataReport()
        for row in read_rows(source, ("text",), report):
            yield NumberedText(row.line, row.text)
        if report.bad:
            on_bad_rows(f"{source}: {report.summary()}")
    else:
        try:
            file = source.open("rb")
        except OSError as error:
            raise DataError(f"{source} cannot be read ({error.strerror}); check the path") from error
        with file:
            yield from _read_lines(file, str(source))


def _read_lines(file: IO[bytes], name: str) -> Iterator[NumberedText]:
    number = 0
    while raw := _line(file, name):
        number += 1
        if len(raw) > LONGEST_LINE:
            raise DataError(f"{name}:{number}: longer than {LONGEST_LINE:,} bytes; is it a file of texts?")
        try:
            text = raw.removeprefix(b"\xef\xbb\xbf").decode("utf-8") if number == 1 else raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{name}:{number}: not UTF-8 at byte {error.start}; convert the file") from error
        if text.strip():
            yield NumberedText(number, text.rstrip("\r\n"))


def _line(file: IO[bytes], name: str) -> bytes:
    try:
        return file.readline(LONGEST_LINE + 1)
    except OSError as error:
        raise DataError(f"{name} cannot be read ({error.strerror or error}); check what it is") from error
