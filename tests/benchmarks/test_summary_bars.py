"""Which figures of summarisers count as reached."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

import pytest
from bars import Bar
from summary_bars import MeasuredSummariser, long_bar, summary_bars
from summary_contenders import SummaryContender
from summary_run import SummaryFigures

PEERS = ("ctranslate2", "transformers", "onnx-export")


def measured(
    name: str,
    engine: str,
    tokens_per_s: float,
    *,
    precision: str = "w8a8-dynamic",
    peak_mib: float = 100.0,
    rouge_l: float | None = None,
    kind: Literal["plain", "pruned"] = "plain",
) -> MeasuredSummariser:
    side: Literal["ours", "peer"] = "peer" if engine in PEERS else "ours"
    total = 1000 * 64 / tokens_per_s
    figures = SummaryFigures("an engine", [[total, total], [2 * total]], [[], []], [peak_mib - 1, peak_mib])
    return MeasuredSummariser(SummaryContender(name, side, engine, precision, {}, [], kind), figures, 64, rouge_l)


def bars(lines: list[MeasuredSummariser], **options: Any) -> dict[str, Bar]:
    return {bar.what: bar for bar in summary_bars("tiny", lines, **{"memory": True, **options})}


PEER = measured("peer", "ctranslate2", 100, precision="int8", peak_mib=200.0, rouge_l=0.30)
TORCH = measured("torch", "transformers", 20, precision="fp32", rouge_l=0.30)


def test_the_same_weights_are_those_with_as_many_bits() -> None:
    lines = [PEER, TORCH, measured("eight", "litert", 130), measured("four", "litert", 400, precision="w4a8-dynamic")]
    found = bars(lines)
    assert found["tiny: against CTranslate2 int8"].met
    assert found["tiny: against CTranslate2 int8"].reached == pytest.approx(1.3)
    assert found["tiny: against transformers fp32"].reached == pytest.approx(20)


def test_a_pruned_student_counts_only_while_it_summarises_as_well() -> None:
    worse = measured("worse", "litert", 400, rouge_l=0.29, kind="pruned")
    good = measured("good", "openvino", 250, rouge_l=0.299, kind="pruned")
    what = "tiny: pruned and trained, against CTranslate2 int8"
    found = bars([PEER, TORCH, worse, good])
    assert found[what].met
    assert found[what].reached == pytest.approx(2.5)
    assert found["tiny: its ROUGE-L"].met
    alone = bars([PEER, TORCH, worse])
    assert not alone[what].met
    assert not alone["tiny: its ROUGE-L"].met


def test_peers_are_not_ours() -> None:
    export = measured("export", "onnx-export", 500, precision="fp32")
    assert "tiny: against transformers fp32" not in bars([PEER, TORCH, export])


def test_memory_is_held_where_it_has_a_bar() -> None:
    lines = [PEER, measured("eight", "litert", 130, peak_mib=170), measured("four", "openvino", 130, peak_mib=150,
                                                                            precision="w4a8-dynamic")]  # fmt: skip
    found = bars(lines)
    assert found["tiny: peak memory, four"].met
    assert not found["tiny: peak memory, eight"].met
    assert not any("memory" in what for what in bars(lines, memory=False))


def test_long_transcripts_are_held_against_short_ones() -> None:
    assert long_bar("litert", (500, 20_000), [100.0, 109.0]).met
    grown = long_bar("litert", (500, 20_000), [100.0, 125.0])
    assert not grown.met
    assert grown.reached == pytest.approx(25)


def test_the_benchmark_starts(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import summarize

    monkeypatch.setattr(sys, "argv", [str(Path(summarize.__file__)), "--help"])
    with pytest.raises(SystemExit) as ended:
        summarize.read_options()
    assert ended.value.code == 0
    assert "--students" in capsys.readouterr().out
