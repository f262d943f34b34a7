"""Contenders in their own processes, on a real bundle and on the same model as a peer."""

from __future__ import annotations

from pathlib import Path

import pytest
from bars import Measured, Quality, bars
from contenders import Contender, StudentFacts, artifacts, peers
from edgescribe.sdk.bundle import read_bundle
from interleaved_run import Effort, Figures, Texts, run

EFFORT = Effort(rounds=3, calls=4, seconds=0.0, warmup=1, starts=2, memory_starts=1, memory_texts=3)
TEXTS = ["the router and the network card", "chess and a puzzle", "a mixer for audio", "packet router tool"]
TRUTH = ["net", "games", "sound", "net"]


@pytest.fixture(scope="module")
def contenders(small_bundle: Path) -> list[Contender]:
    bundle = read_bundle(small_bundle)
    model = small_bundle / "onnxruntime/words.onnx"
    peer = {
        "kind": "onnxruntime",
        "path": str(model),
        "threads": 1,
        "tokenizer": str(small_bundle / "tokenizer.json"),
        "labels": bundle.manifest.labels,
        "max_tokens": 32,
    }
    return [Contender("ORT fp32", "ONNX Runtime fp32", peer, [model]), *artifacts(bundle, 1)]


@pytest.fixture(scope="module")
def stages() -> list[tuple[str, float]]:
    return []


@pytest.fixture(scope="module")
def found(contenders: list[Contender], stages: list[tuple[str, float]]) -> dict[str, Figures]:
    texts = Texts(TEXTS[:2], 16, TEXTS)
    return run(contenders, texts, EFFORT, lambda stage, part: stages.append((stage, part)))


def test_every_contender_is_timed_started_and_asked(
    found: dict[str, Figures], stages: list[tuple[str, float]]
) -> None:
    assert list(found) == ["ORT fp32", "edgescribe fp32, onnxruntime"]
    for figures in found.values():
        assert [len(burst) for burst in figures.latencies_ms] == [4, 4, 4]
        assert all(latency > 0 for burst in figures.latencies_ms for latency in burst)
        assert figures.least_ms <= figures.latency(50) <= figures.latency(90)
        assert len(figures.cold_ms) == 2
        assert len(figures.peak_rss_mib) == 1
        assert figures.labels == TRUTH
        assert figures.engine.startswith("onnxruntime 1.")
    assert {stage for stage, _ in stages} == {"loading", "latency", "accuracy", "start-up and memory"}
    assert all(0 <= part < 1 for _, part in stages)


def test_what_a_contender_said_last_is_told(contenders: list[Contender], tmp_path: Path) -> None:
    broken = Contender("broken", "edgescribe", {**contenders[1].process, "path": str(tmp_path)}, [], "onnxruntime")
    with pytest.raises(RuntimeError, match=r"broken ended with status 1: .*bundle"):
        run([broken], Texts(TEXTS, 16, TEXTS), EFFORT)


def test_the_bundle_is_measured_against_its_peer(contenders: list[Contender], found: dict[str, Figures]) -> None:
    measured = [Measured(one, found[one.name], Quality(1.0, 1.0)) for one in contenders]
    size = contenders[0].mb
    by_name = {bar.what: bar for bar in bars(measured, fp32_mb=4 * size)}
    assert list(by_name) == [
        "p90 against ONNX Runtime fp32",
        "artifact size, onnxruntime",
        "peak memory, onnxruntime",
        "cold start, onnxruntime",
    ]
    assert by_name["p90 against ONNX Runtime fp32"].reached > 0
    assert by_name["artifact size, onnxruntime"].reached == pytest.approx(25)
    assert not by_name["artifact size, onnxruntime"].met
    assert by_name["peak memory, onnxruntime"].reached > 10


def test_peers_read_texts_as_the_bundle_does(tmp_path: Path) -> None:
    facts = StudentFacts(tmp_path / "tokenizer.json", ("net", "games"), 77)
    groups = [peer.group for peer in peers(tmp_path, facts, 2)]
    assert groups.count("ONNX Runtime fp32") == groups.count("ONNX Runtime quantize_dynamic") == 3
    assert {"torch fp32", "OpenVINO + NNCF"} < set(groups)
    assert {(peer.process["threads"], peer.process["max_tokens"]) for peer in peers(tmp_path, facts, 2)} == {(2, 77)}
