"""Which figures of writers count as reached."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

import pytest
from bars import Bar
from writer_bars import MeasuredWriter, writer_bars
from writer_contenders import Bits, WriterContender, brief, takes_part
from writer_run import Rewriting, WriterFigures

FP32_NLL = 2.0


def measured(
    tmp_path: Path,
    name: str,
    side: Literal["ours", "peer"],
    tokens_per_s: float,
    *,
    engine: str = "litert",
    bits: Bits = 4,
    nll: float = 2.1,
    prefill: float = 100.0,
    peak_mib: float = 150.0,
    kind: Literal["plain", "trained", "pruned"] = "plain",
    lookup: float = 0.0,
) -> MeasuredWriter:
    path = tmp_path / name
    path.write_bytes(b"0" * 1000)
    step = 1000 / tokens_per_s
    figures = WriterFigures(
        engine="an engine",
        prefill_ms=[[prefill, prefill], [2 * prefill]],
        steps_ms=[[step] * 4, [2 * step] * 4],
        cold_ms=[900.0, 500.0],
        peak_rss_mib=[peak_mib, peak_mib - 1],
        python_share=[0.03, 0.05] if side == "ours" else [],
        plain=Rewriting([1.0], [[0] * (int(tokens_per_s) + 1)]),
        lookup=Rewriting([1.0], [[0] * (int(lookup) + 1)], 10, 5) if lookup else Rewriting(),
    )
    contender = WriterContender(name, side, engine, bits, Path(sys.executable), {}, [path], kind)
    return MeasuredWriter(contender, figures, nll)


def reached(lines: list[MeasuredWriter], what: str) -> Bar:
    return next(bar for bar in writer_bars(lines, FP32_NLL) if bar.what == what)


def test_the_fastest_peer_is_the_bar_at_its_likelihood_or_better(tmp_path: Path) -> None:
    slow = measured(tmp_path, "slow", "peer", 50, engine="llama.cpp", nll=2.0)
    fast = measured(tmp_path, "fast", "peer", 100, engine="llama.cpp", nll=2.1)
    worse = measured(tmp_path, "worse", "ours", 400, nll=2.2)
    good = measured(tmp_path, "good", "ours", 150, nll=2.1)
    bar = reached([slow, fast, worse, good], "decode, unpruned")
    assert bar.met
    assert bar.reached == pytest.approx(1.5)
    assert "good 112 tok/s" in bar.detail
    assert "fast 75 tok/s" in bar.detail
    alone = reached([slow, fast, worse], "decode, unpruned")
    assert not alone.met
    assert "worse" in alone.detail


def test_a_pruned_writer_has_a_bar_of_its_own(tmp_path: Path) -> None:
    peer = measured(tmp_path, "peer", "peer", 100, engine="llama.cpp")
    plain = measured(tmp_path, "plain", "ours", 110)
    pruned = measured(tmp_path, "pruned", "ours", 159, kind="pruned")
    found = {bar.what: bar for bar in writer_bars([peer, plain, pruned], FP32_NLL)}
    assert found["decode, unpruned"].reached == pytest.approx(1.1)
    assert found["decode, pruned"].reached == pytest.approx(1.59)
    assert not found["decode, pruned"].met
    assert "artifact, pruned" not in found


def test_lookup_is_set_against_the_best_peer_on_the_same_requests(tmp_path: Path) -> None:
    peer = measured(tmp_path, "peer", "peer", 100, engine="llama.cpp")
    ours = measured(tmp_path, "ours", "ours", 110, lookup=230)
    bar = reached([peer, ours], "rewriting with prompt lookup")
    assert bar.met
    assert bar.reached == pytest.approx(2.3)
    assert "2% of tokens copied" in bar.detail
    assert not [bar for bar in writer_bars([peer], FP32_NLL) if bar.what == "rewriting with prompt lookup"]


def test_prefill_memory_and_size_are_set_against_llama_cpp(tmp_path: Path) -> None:
    int4 = measured(tmp_path, "q4", "peer", 100, engine="llama.cpp", prefill=200, peak_mib=180)
    int8 = measured(tmp_path, "q8", "peer", 90, engine="llama.cpp", bits=8, prefill=300, peak_mib=190)
    ours = measured(tmp_path, "ours", "ours", 110, prefill=100, peak_mib=200)
    found = {bar.what: bar for bar in writer_bars([int4, int8, ours], FP32_NLL)}
    assert found["prefill"].reached == pytest.approx(0.5)
    assert found["prefill"].met
    assert found["peak memory against q4, ours"].met
    assert "peak memory against q8, ours" not in found
    assert not found["peak memory, ours"].met
    assert found["peak memory, ours"].reached == pytest.approx(200 * 2**20 / 1e6)
    assert found["artifact, ours"].reached == pytest.approx(0.001)
    assert found["Python's share, ours"].reached == pytest.approx(4.0)


def test_what_training_wins_back_is_of_the_same_runtime(tmp_path: Path) -> None:
    plain = measured(tmp_path, "plain", "ours", 100, nll=2.5)
    trained = measured(tmp_path, "trained", "ours", 100, nll=2.05, kind="trained")
    other = measured(tmp_path, "other", "ours", 100, nll=2.05, kind="trained", engine="openvino")
    found = {bar.what: bar for bar in writer_bars([plain, trained, other], FP32_NLL)}
    assert found["NLL won back, litert"].reached == pytest.approx(90)
    assert found["NLL won back, litert"].met
    assert "NLL won back, openvino" not in found


def test_without_contenders_there_are_no_bars() -> None:
    assert writer_bars([], FP32_NLL) == []


@pytest.mark.parametrize(
    ("only", "expected"), [(None, True), (["llama"], True), (["litert", "Q4"], True), (["litert"], False)]
)
def test_contenders_are_asked_for_by_parts_of_names(only: list[str] | None, expected: Any) -> None:
    assert takes_part("llama.cpp Q4_0", only) is expected


def test_an_error_is_told_by_its_last_line() -> None:
    assert brief("Traceback\n  in there\nValueError: no\n\n") == "ValueError: no"
    assert brief(RuntimeError()) == "RuntimeError"
