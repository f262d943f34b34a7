"""Reading a user's data: good files in every form, bad rows by file and line, and files that are no data."""

from __future__ import annotations

import csv
import gzip
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from edgescribe import DataError, UsageError
from edgescribe.sdk.labelled_text import DataReport, Row, read_rows
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

relaxed = settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


GOOD = [{"text": f"text {index}", "label": "a"} for index in range(1000)]


def test_json_lines(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"text": "ä", "label": "x", "other": [1]}, {"text": "b", "label": 3}])
    assert list(read_rows(path)) == [Row("ä", 1, "x"), Row("b", 2, "3")]


def test_every_column(tmp_path: Path) -> None:
    rows = [{"text": "Linus in  Paris", "tags": ["P", "O", "L"], "summary": "s", "label": "l"}]
    path = jsonl(tmp_path / "a.jsonl", rows)
    assert list(read_rows(path, ("text", "label", "tags", "summary"))) == [
        Row("Linus in  Paris", 1, "l", ("P", "O", "L"), "s")
    ]
    assert list(read_rows(path, ("text",))) == [Row("Linus in  Paris", 1)]


def test_csv(tmp_path: Path) -> None:
    path = tmp_path / "a.CSV"
    path.write_bytes(
        b'\xef\xbb\xbflabel,text,tags\r\nx,"a, ""b""\nc",O O B\r\n\r\ny,\xc3\xa4,O\r\n'
    )
    assert list(read_rows(path)) == [Row('a, "b"\nc', 2, "x"), Row("ä", 5, "y")]
    assert [row.tags for row in read_rows(path, ("text", "tags"))] == [("O", "O", "B"), ("O",)]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv.gz"])
def test_gzip(tmp_path: Path, name: str) -> None:
    content = b'{"text": "t", "label": "l"}\n' if "jsonl" in name else b"text,label\nt,l\n"
    (tmp_path / name).write_bytes(gzip.compress(content))
    assert [(row.text, row.label) for row in read_rows(tmp_path / name)] == [("t", "l")]


def test_a_byte_order_mark_and_blank_lines(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "t", "label": "l"}\r\n\n  \n{"text": "u", "label": "l"}')
    assert [(row.text, row.line) for row in read_rows(tmp_path / "a.jsonl")] == [("t", 1), ("u", 4)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "a"}', r"no 'label' \(found: text\)"),
        (b'{"text": 5, "label": "x"}', "'text' is a number, not a string"),
        (b'{"text": null, "label": "x"}', "'text' is null, not a string"),
        (b'{"text": "a", "label": ["x"]}', "'label' is a list, not a string"),
        (b'{"text": "a", "label": true}', "'label' is true or false, not a string"),
        (b'{"text": " ", "label": "x"}', "'text' is empty"),
        (b'{"text": "a", "label": ""}', "'label' is empty"),
        (b'["a", "x"]', "not a JSON object"),
        (b'{"text": "a", "label": "x"', "not a line of JSON"),
        (b'{"text": "\xff", "label": "x"}', "not UTF-8"),
        (b"[" * 100_000, "not a line of JSON"),
        (b'{"text": "' + b"x" * (9 << 20) + b'", "label": "x"}', "longer than"),
    ],
)
def test_one_bad_row_is_left_out_and_named(tmp_path: Path, line: bytes, message: str) -> None:
    path = jsonl(tmp_path / "a.jsonl", GOOD)
    good = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*good[:500], line + b"\n", *good[500:]]))
    report = DataReport()
    rows = list(read_rows(path, report=report))
    assert (len(rows), report.good, report.bad) == (1000, 1000, 1)
    assert rows[500].line == 502
    (example,) = report.examples
    assert example.startswith(f"{path}:501: ")
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(example)
    assert "1 bad ones left out" in report.summary()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"a,x,y", "3 fields where the first row has 2"),
        (b"\xff,x", "not UTF-8"),
        (b'"a"b,x', "not CSV"),
        (b"a, ", "'label' is empty"),
    ],
)
def test_one_bad_row_of_csv(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"text,label\n" + b"t,x\n" * 600 + line + b"\n" + b"t,x\n" * 400)
    report = DataReport()
    assert len(list(read_rows(path, report=report))) == 1000
    assert report.examples[0].startswith(f"{path}:602: ")
    assert message in report.examples[0]


def test_tags_must_match_the_words(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"text": "a b c", "tags": ["O", "O"]}])
    with pytest.raises(DataError, match="2 tags for 3 words"):
        list(read_rows(path, ("text", "tags")))
    path = jsonl(tmp_path / "a.jsonl", [{"text": "a", "tags": "O"}])
    with pytest.raises(DataError, match="'tags' is not a list of strings"):
        list(read_rows(path, ("text", "tags")))


def test_past_one_percent_the_run_stops(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [*GOOD, *[{"text": "a"}] * 10])
    report = DataReport()
    assert len(list(read_rows(path, report=report))) == 1000
    path = jsonl(tmp_path / "b.jsonl", [*GOOD, *[{"text": "a"}] * 11])
    with pytest.raises(DataError, match=r"11 of 1011 rows read are bad, more than 1%: .*b\.jsonl:1001: no 'label'"):
        list(read_rows(path))


def test_a_file_of_another_kind_stops_early(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"text": "a"}] * 11 + GOOD * 10)
    rows = read_rows(path)
    with pytest.raises(DataError, match="11 of 11 rows"):
        next(rows)


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf", b"text,label\n"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_nothing_in_it(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError):
        list(read_rows(tmp_path / name))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"text;label\na;b\n", "no column 'text' \\(found: text;label\\)"),
        (b"text,label,text\na,b,c\n", "more than one column 'text'"),
        (b"a,b\n", "no column 'text' \\(found: a, b\\)"),
    ],
)
def test_columns_of_csv(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_rows(tmp_path / "a.csv"))


def test_what_is_no_data_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such file"):
        list(read_rows(tmp_path / "absent.jsonl"))
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match=r"data files are \.jsonl, \.csv"):
        list(read_rows(tmp_path / "a.txt"))
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DataError, match="cannot be read"):
        list(read_rows(tmp_path / "folder.csv"))
    good = gzip.compress(b'{"text": "t", "label": "l"}\n' * 5000)
    for content in (b"no gzip", good[:-20], good[:30] + b"\xff\xff\xff" + good[33:]):
        (tmp_path / "a.jsonl.gz").write_bytes(content)
        with pytest.raises(DataError, match="gzip file is damaged"):
            list(read_rows(tmp_path / "a.jsonl.gz"))


def test_columns_that_there_are_not(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no column 'lable'; choose from text, label, tags, summary"):
        read_rows(tmp_path / "a.jsonl", ("text", "lable"))
    with pytest.raises(UsageError, match="'text' is not among"):
        read_rows(tmp_path / "a.jsonl", ("label",))


CELLS = st.text(st.characters(codec="utf-8") | st.sampled_from('",\r\n\0 ä'), min_size=1, max_size=20).filter(str.strip)


@relaxed
@given(rows=st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=8))
def test_csv_and_json_give_back_what_was_written(tmp_path: Path, rows: list[tuple[str, str]]) -> None:
    buffer = io.StringIO(newline="")
    csv.writer(buffer).writerows([("text", "label"), *rows])
    (tmp_path / "a.csv").write_bytes(buffer.getvalue().encode())
    jsonl(tmp_path / "a.jsonl", [{"text": text, "label": label} for text, label in rows])
    assert [(row.text, row.label) for row in read_rows(tmp_path / "a.jsonl")] == rows
    assert [(row.text, row.label) for row in read_rows(tmp_path / "a.csv")] == rows


@relaxed
@given(content=st.binary(max_size=300), name=st.sampled_from(["a.jsonl", "a.csv", "a.jsonl.gz"]))
def test_any_bytes_are_rows_or_a_data_error(tmp_path: Path, content: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    try:
        rows = list(read_rows(tmp_path / name))
    except DataError:
        return
    assert all(row.text.strip() and row.label for row in rows)


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """60 MB read where 40 MB more than after the start would be refused."""
    line = json.dumps({"text": "word " * 200, "label": "a"}) + "\n"
    (tmp_path / "a.jsonl").write_text(line * 60_000)
    program = f"""
import resource
from edgescribe.sdk.labelled_text import read_rows
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (40 << 20),) * 2)
print(sum(1 for _ in read_rows({str(tmp_path / "a.jsonl")!r})))
"""
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "60000\n"
