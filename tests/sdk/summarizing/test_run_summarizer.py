"""``edgescribe`` with a bundle that summarises: texts, pipes, transcripts, JSON, and what it refuses."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from edgescribe import load_summarizer
from edgescribe.__main__ import run

TEXT = "The committee met on Monday; the committee adjourned on Tuesday."
VTT = "WEBVTT\n\n" + "\n\n".join(
    f"00:{at:02}.000 --> 00:{at:02}.900\n<v {('Anna', 'Peter')[at % 2]}>The committee met, {at}." for at in range(40)
)


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    def call(*arguments: object, stdin: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        with pytest.raises(SystemExit) as ended:
            sys.exit(run([str(each) for each in arguments]))
        shown = capsys.readouterr()
        return int(ended.value.code or 0), shown.out, shown.err

    return call


def test_a_text_is_summarised(summarizer_folder: Path, call: Callable[..., Any]) -> None:
    code, out, err = call("run", summarizer_folder, "--text", TEXT, "--max-new-tokens", "6", "--min-new-tokens", 6)
    assert code == 0
    assert "6 tokens of" in err
    with load_summarizer(summarizer_folder) as summarizer:
        assert out.strip() == summarizer.summarize(TEXT, max_new_tokens=6, min_new_tokens=6).text.strip()


def test_every_option_reaches_the_summariser(summarizer_folder: Path, call: Callable[..., Any]) -> None:
    code, out, _ = call(
        "run", summarizer_folder, "--text", TEXT, "--text", "", "--num-beams", 3, "--length-penalty", 2,
        "--no-repeat-ngram", 2, "--max-new-tokens", 9, "--json", "--runtime", "onnxruntime",
    )  # fmt: skip
    assert code == 0
    found, empty = (json.loads(line) for line in out.splitlines())
    with load_summarizer(summarizer_folder, runtime="onnxruntime") as summarizer:
        wanted = summarizer.summarize(
            TEXT, num_beams=3, length_penalty=2.0, no_repeat_ngram_size=2, max_new_tokens=9
        )
    assert found["summary"] == wanted.text
    assert (found["num_beams"], found["source_tokens"], found["line"]) == (3, wanted.source_tokens, 1)
    assert found["score"] == pytest.approx(wanted.score, abs=1e-3)
    assert (empty["summary"], empty["new_tokens"], empty["finish_reason"], empty["line"]) == ("", 0, "stop", 2)
    drawn = ("run", summarizer_folder, "--text", TEXT, "--temperature", 2, "--seed", 5, "--json")
    assert json.loads(call(*drawn)[1])["summary"] == json.loads(call(*drawn)[1])["summary"]


def test_a_pipe_is_one_text(summarizer_folder: Path, call: Callable[..., Any]) -> None:
    code, out, _ = call("run", summarizer_folder, "--json", stdin="The committee\nmet on Monday.\n")
    assert code == 0
    (found,) = (json.loads(line) for line in out.splitlines())
    assert found["file"] == "stdin"
    with load_summarizer(summarizer_folder) as summarizer:
        assert found["summary"] == summarizer.summarize("The committee met on Monday.").text


def test_rows_of_data_files_are_texts_of_their_own(
    summarizer_folder: Path, call: Callable[..., Any], tmp_path: Path
) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "The committee met."}\n{"text": "The dog did not care."}\n')
    code, out, _ = call("run", summarizer_folder, "--input", path, "--json", "--max-new-tokens", 4)
    assert code == 0
    assert [json.loads(line)["text"] for line in out.splitlines()] == ["The committee met.", "The dog did not care."]


def test_a_long_transcript_is_summarised_in_parts(
    summarizer_folder: Path, call: Callable[..., Any], tmp_path: Path
) -> None:
    path = tmp_path / "meeting.vtt"
    path.write_text(VTT)
    asked = ("run", summarizer_folder, "--input", path, "--max-new-tokens", 6, "--min-new-tokens", 4)
    code, out, err = call(*asked)
    assert code == 0
    assert "part 1, from 0:00:00: " in err
    assert " parts, " in err
    code, lines, _ = call(*asked, "--json")
    found = [json.loads(line) for line in lines.splitlines()]
    assert [each["final"] for each in found] == [False] * (len(found) - 1) + [True]
    assert found[-1]["summary"] == out.strip()
    assert found[-1]["file"] == str(path)
    code, _, err = call(*asked, "--no-long")
    assert code == 4
    assert "summarize_long" in err
    path.write_text(VTT[: VTT.index("00:03.000")])
    code, lines, _ = call(*asked, "--json")
    assert json.loads(lines)["finish_reason"] in ("stop", "length")
    assert json.loads(call(*asked, "--json", "--long")[1].splitlines()[-1])["reason"] == "one-part"
    assert call("run", summarizer_folder, "--text", TEXT * 9, "--long")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--text", "x", "--context", "500"), 2, "40"),
        (("--text", TEXT * 9), 4, "--long"),
        (("--text", "x", "--precision", "w8a8-dynamic"), 4, "no artifact for w8a8-dynamic"),
        (("--text", "x", "--num-beams", "99"), 2, "num-beams"),
        (("--text", "x", "--num-beams", "2", "--temperature", "1"), 2, "one beam"),
        (("--text", "x", "--input", "y"), 2, "exclude"),
        (("--input", "no such file"), 4, "no such file"),
    ],
)
def test_what_is_refused(
    summarizer_folder: Path, call: Callable[..., Any], arguments: tuple[str, ...], code: int, words: str
) -> None:
    found, _, err = call("run", summarizer_folder, *arguments)
    assert found == code
    assert words in err


@pytest.mark.slow
def test_bench_inspect_and_check_know_summarisers(
    summarizer_folder: Path, call: Callable[..., Any], tmp_path: Path
) -> None:
    code, out, _ = call("inspect", summarizer_folder)
    assert code == 0
    assert "96 tokens" in out
    assert "40 tokens at most, 1 that start it included" in out
    brief = ("--samples", 4, "--seconds", 0)
    code, out, _ = call("bench", summarizer_folder, *brief, "--tokens", 50)
    assert code == 0
    assert "after a text of 50 tokens" in out
    assert "tokens/s" in out
    code, out, _ = call("bench", summarizer_folder, *brief, "--json", "--runtime", "litert")
    figures = json.loads(out)
    assert figures["tokens"] == 96
    assert 0 < figures["tokens_per_s"] < 1000 * 64 / figures["ttft_ms"]
    assert call("bench", summarizer_folder, *brief, "--tokens", 97)[0] == 2
    code, out, _ = call("check", summarizer_folder, "--device", "host", *brief)
    assert code in (0, 3)
    assert "decode rate" in out
    code, out, _ = call("check", summarizer_folder, "--device", "raspberry-pi-5", *brief, "--json")
    findings = {each["key"]: each["how"] for each in json.loads(out)["findings"]}
    assert findings["ttft_ms"] == findings["tokens_per_s"] == "estimated"
