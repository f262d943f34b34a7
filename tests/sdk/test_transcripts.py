"""Transcripts of three formats, as people and programs write them, and files that are none."""

from __future__ import annotations

import io
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from edgescribe.errors import DataError, InputError
from edgescribe.sdk.transcripts import read_transcript, transcript_turns
from edgescribe.sdk.turn import TranscriptReport, Turn
from hypothesis import given
from hypothesis import strategies as st


def turns(text: str) -> list[tuple[str, float | None, str]]:
    return [(turn.speaker, turn.start, turn.text) for turn in transcript_turns(text)]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("Anna Bell: We begin.", ("Anna Bell", None, "We begin.")),
        ("[00:12:03] Anna: We begin.", ("Anna", 723, "We begin.")),
        ("00:12:03 Anna: We begin.", ("Anna", 723, "We begin.")),
        ("(12:03) Anna: We begin.", ("Anna", 723, "We begin.")),
        ("Anna (12:03): We begin.", ("Anna", 723, "We begin.")),
        ("Anna [0:12:03.500]: We begin.", ("Anna", 723.5, "We begin.")),
        ("Anna  12:03\nWe begin.", ("Anna", 723, "We begin.")),
        ("**Anna**: We begin.", ("Anna", None, "We begin.")),
        ("**Anna:** We begin.", ("Anna", None, "We begin.")),
        ("- Anna: We begin.", ("Anna", None, "We begin.")),
        ("Anna (Sales): We begin.", ("Anna (Sales)", None, "We begin.")),
        ("Dr. Jan-Pieter van der Meer: We begin.", ("Dr. Jan-Pieter van der Meer", None, "We begin.")),
        ("Speaker 1: We begin.", ("Speaker 1", None, "We begin.")),
        ("#Person1#: We begin.", ("Person1", None, "We begin.")),
        ("李雷：我们开始。", ("李雷", None, "我们开始。")),
        ("ANNA:\nWe begin.", ("ANNA", None, "We begin.")),
        ("[12:03] We begin.", ("", 723, "We begin.")),
        ("12:03\nWe begin.", ("", 723, "We begin.")),
    ],
)
def test_ways_to_begin_a_turn(line: str, expected: tuple[str, float | None, str]) -> None:
    assert turns(line) == [expected]


@pytest.mark.parametrize(
    "line",
    [
        "See https://example.org: it is there",
        "We meet at 10:30 and end at noon",
        "The plan is this: we go",
        "Note: we go",
        "Agenda: budget, travel",
        "Beschluss: wir gehen",
        "and so: we go",
        "12: we go",
        "Anna:we go",
    ],
)
def test_lines_that_name_nobody(line: str) -> None:
    assert turns(line) == [("", None, line)]


def test_lines_go_on_until_the_next_name() -> None:
    text = "Minutes of Monday\n\nAnna: We begin\nwith the budget.\n\nNote: all agreed.\nBob: Fine.\n"
    assert turns(text) == [
        ("", None, "Minutes of Monday"),
        ("Anna", None, "We begin with the budget. Note: all agreed."),
        ("Bob", None, "Fine."),
    ]


VTT = """WEBVTT - Monday's meeting

NOTE made by hand
and kept

STYLE
::cue { color: white }

1
00:00:01.000 --> 00:00:02.500 align:start position:0%
<v Anna Bell>Hello <i>all</i> &amp; welcome,

second
00:02.600 --> 00:03.000
<v.loud Anna Bell>how are you?</v> <v Bob>Fine, <00:02.800>thanks.

00:00:07.000 --> 00:00:08.000
Carl: By colon.
Dora:
On the next line.
"""


def test_webvtt() -> None:
    report = TranscriptReport()
    found = list(transcript_turns(VTT, report))
    assert found == [
        Turn("Anna Bell", 1, "Hello all & welcome, how are you?"),
        Turn("Bob", 2.6, "Fine, thanks."),
        Turn("Carl", 7, "By colon."),
        Turn("Dora", 7, "On the next line."),
    ]
    assert (report.format, report.turns, report.faults) == ("webvtt", 4, 0)


def test_srt_with_windows_line_ends() -> None:
    text = (
        "1\r\n00:00:01,000 --> 00:00:02,000\r\n- Anna: One\r\n{\\an8}two\r\n\r\n"
        '2\r\n00:01:03,250 --> 00:01:04,000\r\n<font color="#fff">three.</font>\r\n'
        "3\r\n00:02:00,000 --> 00:02:01,000\r\nBob: Four.\r\n"
    )
    report = TranscriptReport()
    assert list(transcript_turns(text, report)) == [Turn("Anna", 1, "One two three."), Turn("Bob", 120, "Four.")]
    assert (report.format, report.faults) == ("srt", 0)


def test_cues_that_are_broken_are_named_and_their_words_kept() -> None:
    text = (
        "WEBVTT\n\n00:01.000 --> 00:xx.000\nfirst words\n\nno times at all\n\n77\n\n"
        "00:05.000 --> 00:06.000\n\n00:07 --> 00:08\nsecond words\n"
    )
    report = TranscriptReport()
    (turn,) = transcript_turns(text, report)
    assert turn == Turn("", None, "first words no times at all second words")
    assert report.faults == 4
    assert report.examples[0] == "line 3: no times are in '00:01.000 --> 00:xx.000'"
    assert report.examples[1] == "line 6: no times come before 'no times at all'"


def test_many_faults_are_counted_and_a_few_named() -> None:
    report = TranscriptReport()
    list(transcript_turns("WEBVTT\n\n" + "lost\n\n" * 50, report))
    assert report.faults == 50
    assert len(report.examples) == 5


def test_long_subtitles_are_several_turns_each_with_its_time() -> None:
    cues = (f"00:{n // 60:02}:{n % 60:02},000 --> 00:59:00,000\nThis is sentence {n} of them.\n" for n in range(90))
    found = list(transcript_turns("\n".join(cues)))
    assert len(found) > 10
    for turn in found:
        assert turn.text.startswith(f"This is sentence {turn.start:.0f} ")
        assert len(turn.text) < 200


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_encodings_and_line_ends(encoding: str, ends: str, tmp_path: Path) -> None:
    path = tmp_path / "meeting.txt"
    path.write_bytes(ends.join(["Jürgen: Grüße", "会议：你好", "Zoë: 👋 hi"]).encode(encoding))
    expected = [("Jürgen", None, "Grüße 会议：你好"), ("Zoë", None, "👋 hi")]
    assert [(turn.speaker, turn.start, turn.text) for turn in read_transcript(path)] == expected
    with path.open("rb") as file:
        assert len(list(read_transcript(file))) == 2


def test_a_character_between_two_reads_stays_whole(tmp_path: Path) -> None:
    path = tmp_path / "meeting.txt"
    text = "x" * 8191 + "é\r\nAnna: ok " + "ü" * 9000
    path.write_text(text, encoding="utf-8", newline="")
    assert "".join(turn.text for turn in read_transcript(path)) == "x" * 8191 + "é" + "ok " + "ü" * 9000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x89PNG\r\n\x1a\n\x00\x00", "not a text in UTF-8"),
        (b"Anna: hi\nBob: caf\xe9\n", r"near line [12]\).*iconv"),
        (b"PK\x03\x04rest", "zip or office"),
        (b"%PDF-1.7 rest", "a PDF file"),
        (b"{\\rtf1 rest", "an RTF file"),
        (b"Anna: hi\n\x00\x00", "not a text"),
        (b"Anna: hi \xf0\x9f", "not a text in UTF-8"),
    ],
)
def test_what_is_no_text_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "meeting.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        list(read_transcript(path))
    with pytest.raises(InputError, match=message):
        list(read_transcript(io.BytesIO(content)))


def test_other_things_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        list(read_transcript(tmp_path / "none.txt"))
    with pytest.raises(DataError, match="cannot be read"):
        list(read_transcript(tmp_path))
    with pytest.raises(InputError, match="a bytes was given"):
        transcript_turns(b"Anna: hi")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="not a text"):
        list(transcript_turns("Anna: \ud800"))


@pytest.mark.parametrize("content", ["", "\n \n\t\n", "\ufeff", "WEBVTT\n\nNOTE nothing\n"])
def test_nothing_has_no_turns(content: str, tmp_path: Path) -> None:
    path = tmp_path / "empty.vtt"
    path.write_text(content, encoding="utf-8")
    assert list(read_transcript(path)) == []


@given(st.text(max_size=300))
def test_any_text_is_read(text: str) -> None:
    found = list(transcript_turns(text.replace("\0", "")))
    assert all(turn.text.strip() and "\n" not in turn.text for turn in found)


LINES = ("WEBVTT", "00:01.000 --> 00:02.000", "1", "", "Anna: hi.", "<v Bob>yo", "-->", "NOTE x", "words")


@given(st.lists(st.sampled_from(LINES), max_size=12))
def test_any_order_of_lines_is_read_and_no_words_are_lost(lines: list[str]) -> None:
    text = "\n".join(lines)
    found = " ".join(turn.text for turn in transcript_turns(text))
    if not any(line.startswith("NOTE") for line in lines) and lines[:1] != ["WEBVTT"]:
        # a line right above a line of times may be the cue's name
        spoken = [a for a, b in zip(lines, [*lines[1:], ""], strict=False) if a == "words" and "-->" not in b]
        assert found.count("words") >= len(spoken)


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    def peak(copies: int, unit: str) -> int:
        path = tmp_path / "long.txt"
        with path.open("w") as file:
            for _ in range(copies):
                file.write(unit)
        tracemalloc.start()
        count = sum(len(turn.text) for turn in read_transcript(path))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert count > 100 * copies
        return most

    speech = "some words of a sentence that is spoken here. " * 4
    for unit in (f"Anna: {speech}\n", f"{speech}\n", speech, f"00:01.000 --> 00:02.000\n{speech}\n\n"):
        assert peak(2_000, unit) < peak(200, unit) + 100_000


def test_reading_begins_before_the_end_is_there() -> None:
    class Endless(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
            words = b"Anna: hello there.\nBob: hi.\n"
            buffer[: len(words)] = words
            return len(words)

    found: Iterator[Turn] = read_transcript(io.BufferedReader(Endless()))
    assert [next(found).speaker for _ in range(4)] == ["Anna", "Bob", "Anna", "Bob"]
