"""The teacher's summaries: which texts it writes for, that they are kept and taken up, what a kill leaves."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from edgescribe.converters import teacher_summaries
from edgescribe.converters.teacher_summaries import drawn_rows, with_teacher_summaries
from edgescribe.errors import OutputError

HOW: dict[str, Any] = {"share": 0.5, "beams": 1, "max_tokens": 40, "summary_tokens": 16, "seed": 0}


def test_rows_are_drawn_by_the_seed() -> None:
    rows = drawn_rows(100, 0.3, 7)
    assert rows == sorted(set(rows)) == drawn_rows(100, 0.3, 7)
    assert len(rows) == 30
    assert drawn_rows(100, 0.3, 8) != rows
    assert drawn_rows(100, 0, 7) == []
    assert drawn_rows(100, 1, 7) == list(range(100))


def test_a_share_of_the_summaries_is_the_teachers(summarizer: Any, evaluation_texts: Any) -> None:
    wrong = replace(evaluation_texts, summaries=["nobody does nothing"] * len(evaluation_texts.texts))
    mixed = with_teacher_summaries(wrong, summarizer, **HOW)
    written = [row for row, summary in enumerate(mixed.summaries) if summary != "nobody does nothing"]
    assert written == drawn_rows(len(wrong.texts), 0.5, 0)
    right = sum(mixed.summaries[row] == evaluation_texts.summaries[row] for row in written)
    assert right >= 0.9 * len(written)
    assert mixed.texts == wrong.texts
    assert with_teacher_summaries(wrong, summarizer, **{**HOW, "share": 0.0}) is wrong


def test_where_the_teacher_writes_nothing_the_true_one_stays(summarizer: Any, evaluation_texts: Any) -> None:
    few = evaluation_texts.part(range(6))
    mute = {**HOW, "share": 1.0, "summary_tokens": 1}
    assert with_teacher_summaries(few, summarizer, **mute).summaries == few.summaries


def test_what_was_written_is_not_written_again(
    summarizer: Any, evaluation_texts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "states" / "kept.jsonl"
    told: list[float] = []
    first = with_teacher_summaries(evaluation_texts, summarizer, **HOW, path=path, on_progress=told.append)
    assert told[0] == 0.0
    assert told[-1] == 1.0
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 1 + 40

    # A kill in the midst of a line: all before it is taken up, the rest is written.
    path.write_text("\n".join(lines[:20]) + "\n" + lines[20][:15], encoding="utf-8")
    asked: list[int] = []
    write = teacher_summaries.write_summaries

    def counted(graph: Any, sources: Any, *arguments: Any) -> Any:
        asked.append(len(sources))
        return write(graph, sources, *arguments)

    monkeypatch.setattr(teacher_summaries, "write_summaries", counted)
    assert with_teacher_summaries(evaluation_texts, summarizer, **HOW, path=path).summaries == first.summaries
    assert asked == [21]
    assert with_teacher_summaries(evaluation_texts, summarizer, **HOW, path=path).summaries == first.summaries
    assert asked == [21]
    # Written in another way, they are another's.
    with_teacher_summaries(evaluation_texts, summarizer, **{**HOW, "beams": 2}, path=path)
    assert asked == [21, 40]
    assert json.loads(path.read_text(encoding="utf-8").splitlines()[0])["beams"] == 2


@pytest.mark.parametrize("content", ["", "not JSON\n", "[]\n", '{"row": 1}\n', "\x00\xff"])
def test_a_damaged_file_is_written_anew(summarizer: Any, evaluation_texts: Any, tmp_path: Path, content: str) -> None:
    path = tmp_path / "kept.jsonl"
    path.write_text(content, encoding="latin-1")
    few = evaluation_texts.part(range(4))
    mixed = with_teacher_summaries(few, summarizer, **HOW, path=path)
    assert len(path.read_text(encoding="utf-8").splitlines()) == 1 + 2
    assert mixed.texts == few.texts


def test_a_folder_that_cannot_be_written_is_told(summarizer: Any, evaluation_texts: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="was not written"):
        with_teacher_summaries(evaluation_texts.part([0, 1]), summarizer, **HOW, path=tmp_path / "file" / "kept.jsonl")
