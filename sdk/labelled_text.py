"""Reading a user's data as a stream: JSON Lines or CSV, with labels, tags, summaries or texts alone.

Columns, by what they are for:

- ``text``: the text, a string (not blank where something else goes with it);
- ``label``: a string, or in JSON a whole number, which is taken as a string;
- ``tags``: one for each word of the text, words being what white space separates: in JSON a list of strings, in CSV
  separated by blanks;
- ``summary``: a string.

Other columns are passed over. Files are UTF-8 (a byte order mark is allowed) and may be gzipped. Memory does not grow
with the file. A bad row is counted and named by file and line; too many of them stop the reading.
"""

from __future__ import annotations

import csv
import gzip
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

import msgspec

from ..errors import DataError, UsageError

COLUMNS = ("text", "label", "tags", "summary")
SUFFIXES = (".jsonl", ".csv", ".jsonl.gz", ".csv.gz")

LONGEST_ROW = 8 << 20
"""Bytes in one line of JSON, characters in one field of CSV; a longer one is most likely a file that is no such."""

BAD_SHARE = 0.01
_ALLOWED_EARLY = 10  # a few bad rows at a file's head do not yet tell the share of the whole
_EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class Row:
    """One row; what was not asked for is None (``tags``: empty). ``line``: where it begins in the file, from 1."""

    text: str
    line: int
    label: str | None = None
    tags: tuple[str, ...] = ()
    summary: str | None = None


@dataclass
class DataReport:
    """What became of a file's rows; grows while :func:`read_rows` reads.

    ``good``, ``bad``: rows so far; ``examples``: the first bad ones as ``file:line: what is wrong``.
    """

    good: int = 0
    bad: int = 0
    examples: list[str] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """Rows so far, good and bad."""
        return self.good + self.bad

    def summary(self) -> str:
        """One line for people."""
        if not self.bad:
            return f"{self.good} rows"
        return f"{self.good} rows, {self.bad} bad ones left out: {'; '.join(self.examples)}"


class _BadRow(Exception):
    """What is wrong with a row."""


def read_rows(
    path: str | os.PathLike[str], columns: Sequence[str] = ("text", "label"), report: DataReport | None = None
) -> Iterator[Row]:
    """Read a data file row by row.

    Args:
        path: a ``.jsonl`` or ``.csv`` file, ``.gz`` allowed.
        columns: which columns each row must have; ``text`` among them.
        report: filled in while reading, for a caller that wants the counts.

    Raises:
        DataError: the file is missing, empty, unreadable or of another kind, lacks a column, or more than 1 % of its
            rows are bad (at the latest after the last row; the message names some of them).
        UsageError: a column that there is not.
    """
    if unknown := [column for column in columns if column not in COLUMNS]:
        raise UsageError(f"there is no column {unknown[0]!r}; choose from {', '.join(COLUMNS)}")
    if "text" not in columns:
        raise UsageError("'text' is not among the columns; every row has one")
    return _read(Path(path), tuple(columns), DataReport() if report is None else report)


def _read(path: Path, columns: tuple[str, ...], report: DataReport) -> Iterator[Row]:
    name = path.name.lower()
    if not name.endswith(SUFFIXES):
        raise DataError(f"{path}: data files are {', '.join(SUFFIXES)}; rename or convert it")
    reader = _json_rows if name.removesuffix(".gz").endswith(".jsonl") else _csv_rows
    try:
        with gzip.open(path, "rb") if name.endswith(".gz") else path.open("rb") as file:
            for line, found in reader(path, cast(IO[bytes], file), columns):
                try:
                    if isinstance(found, _BadRow):
                        raise found
                    row = _row(found, line, columns)
                except _BadRow as fault:
                    _count_bad(path, line, fault, report)
                    continue
                report.good += 1
                yield row
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file; check the path") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: the gzip file is damaged after {report.rows} rows ({error}); copy it again") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}); check path and permissions") from None
    if not report.rows:
        raise DataError(f"{path}: there are no rows in it; each needs {_wanted(columns)}")
    if report.bad > BAD_SHARE * report.rows:
        raise _too_many(path, report)


def _count_bad(path: Path, line: int, fault: _BadRow, report: DataReport) -> None:
    report.bad += 1
    if len(report.examples) < _EXAMPLES:
        report.examples.append(f"{path}:{line}: {fault}")
    if report.bad > max(_ALLOWED_EARLY, BAD_SHARE * report.rows):
        raise _too_many(path, report)


def _too_many(path: Path, report: DataReport) -> DataError:
    return DataError(
        f"{path}: {report.bad} of {report.rows} rows read are bad, more than {BAD_SHARE:.0%}: "
        f"{'; '.join(report.examples)}. Mend or remove them"
    )


def _wanted(columns: Sequence[str]) -> str:
    return " and ".join(repr(column) for column in columns)


def _json_rows(path: Path, file: IO[bytes], columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, Any] | _BadRow]]:
    number = 0
    while raw := file.readline(LONGEST_ROW + 1):
        number += 1
        if number == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        if len(raw) > LONGEST_ROW:
            while raw and not raw.endswith(b"\n"):
                raw = file.readline(LONGEST_ROW)
            yield number, _BadRow(f"longer than {LONGEST_ROW:,} bytes")
        elif raw.strip():
            yield number, _json_row(raw)


def _json_row(raw: bytes) -> dict[str, Any] | _BadRow:
    try:
        found = msgspec.json.decode(raw)
    except UnicodeDecodeError:
        return _BadRow("not UTF-8")
    except (msgspec.MsgspecError, RecursionError) as error:
        return _BadRow(f"not a line of JSON ({error})")
    return found if isinstance(found, dict) else _BadRow("not a JSON object ({…})")


def _csv_rows(path: Path, file: IO[bytes], columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, Any] | _BadRow]]:
    # A quote that is never closed would otherwise take the rest of the file into one field.
    csv.field_size_limit(max(LONGEST_ROW, csv.field_size_limit()))
    reader = csv.reader(_text_lines(file), strict=True)
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield line, _BadRow(f"not CSV ({error})")
            continue
        if header is None:
            header = _checked_header(path, fields, columns)
        elif fields:
            yield line, _csv_row(header, fields)


def _text_lines(file: IO[bytes]) -> Iterator[str]:
    """Lines; bytes that are not UTF-8 become lone surrogates, by which their row is found to be bad."""
    first = True
    while raw := file.readline(LONGEST_ROW):
        yield (raw.removeprefix(b"\xef\xbb\xbf") if first else raw).decode("utf-8", "surrogateescape")
        first = False


def _checked_header(path: Path, header: list[str], columns: tuple[str, ...]) -> list[str]:
    names = [name.strip() for name in header]
    for column in columns:
        if names.count(column) != 1:
            fault = "no column" if column not in names else "more than one column"
            raise DataError(
                f"{path}:1: {fault} {column!r} (found: {', '.join(names)[:200] or 'nothing'}); the first row names the "
                f"columns, separated by commas: {', '.join(columns)}"
            )
    return names


def _csv_row(header: list[str], fields: list[str]) -> dict[str, Any] | _BadRow:
    if len(fields) != len(header):
        return _BadRow(f"{len(fields)} fields where the first row has {len(header)}")
    row: dict[str, Any] = dict(zip(header, fields, strict=True))
    if "tags" in row:
        row["tags"] = row["tags"].split()
    return row


def _row(found: dict[str, Any], line: int, columns: tuple[str, ...]) -> Row:
    for column in columns:
        if column not in found:
            raise _BadRow(f"no {column!r} (found: {', '.join(map(str, found))[:100] or 'nothing'})")
    text = _text(found, "text", blank=len(columns) == 1)
    label = summary = None
    tags: tuple[str, ...] = ()
    if "label" in columns:
        value = found["label"]
        number = isinstance(value, int) and not isinstance(value, bool)
        label = str(value) if number else _text(found, "label", blank=False)
    if "tags" in columns:
        tags = _tags(found["tags"], text)
    if "summary" in columns:
        summary = _text(found, "summary", blank=False)
    return Row(text, line, label, tags, summary)


def _text(found: dict[str, Any], column: str, blank: bool) -> str:
    value = found[column]
    if not isinstance(value, str):
        raise _BadRow(f"{column!r} is {_kind(value)}, not a string")
    if not blank and not value.strip():
        raise _BadRow(f"{column!r} is empty")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise _BadRow(f"{column!r} is not UTF-8")
    return value


def _tags(value: Any, text: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(tag, str) and tag.strip() for tag in value):
        raise _BadRow("'tags' is not a list of strings")
    words = len(text.split())
    if len(value) != words:
        raise _BadRow(f"{len(value)} tags for {words} words")
    return tuple(value)


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    return {bool: "true or false", dict: "an object", list: "a list"}.get(type(value), "a number")
