"""What commands print: answers, warnings, figures and findings, in words and in JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

BRIEF = ("--samples", "4", "--seconds", "0")


def test_answers_of_run_in_json(call: Callable[..., Any]) -> None:
    ended = call(["run", "{bundle}", "--input", "{texts}", "--top-k", "2", "--json"])
    rows = [json.loads(line) for line in ended.out.splitlines()]
    assert [(row["line"], row["label"]) for row in rows] == [(1, "games"), (2, "net"), (3, "sound")]
    for row in rows:
        assert list(row["scores"].values()) == sorted(row["scores"].values(), reverse=True)
        assert row["scores"][row["label"]] == row["score"]
        assert len(row["scores"]) == 2


def test_an_error_after_answers_is_the_last_line(call: Callable[..., Any], tmp_path: Path) -> None:
    half = tmp_path / "half.jsonl"
    half.write_text('{"text": "chess"}\n{"words": 1}\n')
    ended = call(["run", "{bundle}", "--input", str(half), "--json"])
    assert ended.code == 4
    first, last = map(json.loads, ended.out.splitlines())
    assert first["label"] == "games"
    assert last["error"]["type"] == "DataError"
    assert "half.jsonl:2" in last["error"]["message"]


def test_run_tells_what_was_cut(call: Callable[..., Any]) -> None:
    ended = call(["run", "{bundle}", "--text", "chess " * 50])
    assert ended.code == 0
    assert "warning: 1 text was longer than 32 tokens" in ended.err


def test_bench_gives_figures(call: Callable[..., Any]) -> None:
    found = json.loads(call(["bench", "{bundle}", *BRIEF, "--json"]).out)
    assert 0 < found["p50_ms"] <= found["p90_ms"] <= found["p99_ms"]
    assert found["samples"] >= 4
    assert not found["published"]
    assert found["effective"]["runtime"] == "onnxruntime"
    assert found["cold_ms"] > found["load_ms"]


def test_check_shows_each_figure(call: Callable[..., Any]) -> None:
    found = json.loads(call(["check", "{bundle}", "--device", "{tight_profile}", *BRIEF, "--json"]).out)
    assert found["met"] is False
    verdicts = {finding["key"]: finding["verdict"] for finding in found["findings"]}
    assert verdicts == {"p90_ms": "over", "peak_rss_mib": "met", "disk_mib": "met"}


def test_measured_profile_can_be_used(call: Callable[..., Any], tmp_path: Path) -> None:
    out = tmp_path / "here.toml"
    assert call(["devices", "measure", "--seconds", "0.2", "--out", str(out)]).code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["here.toml"]
    ended = call(["check", "{bundle}", "--device", str(out), *BRIEF, "--json"])
    assert ended.code == 0
    assert {finding["how"] for finding in json.loads(ended.out)["findings"]} == {"measured"}
