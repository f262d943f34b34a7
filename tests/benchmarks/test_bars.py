"""Which figures count as reached."""

from __future__ import annotations

from pathlib import Path

import pytest
from bars import Bar, Measured, Quality, bars, ratio
from contenders import Contender, Group
from interleaved_run import Figures


def measured(
    tmp_path: Path, name: str, group: Group, p90: float, accuracy: float = 0.8, size: int = 100, runtime: str = ""
) -> Measured:
    path = tmp_path / name
    path.write_bytes(b"0" * size)
    figures = Figures("an engine", [[p90] * 10, [2 * p90] * 10, [p90] * 10], [900.0, 500.0, 1200.0], [40.0, 50.0])
    return Measured(Contender(name, group, {}, [path], runtime), figures, Quality(accuracy, accuracy))


def reached(one: list[Measured], what: str) -> Bar:
    return next(bar for bar in bars(one, fp32_mb=500e-6) if bar.what == what)


def test_the_fastest_peer_of_a_group_is_the_bar(tmp_path: Path) -> None:
    ours = measured(tmp_path, "ours", "edgescribe", 2.0, runtime="litert")
    slow = measured(tmp_path, "slow", "ONNX Runtime fp32", 8.0)
    fast = measured(tmp_path, "fast", "ONNX Runtime fp32", 5.0)
    bar = reached([slow, fast, ours], "p90 against ONNX Runtime fp32")
    assert bar.reached == pytest.approx(2.5)
    assert not bar.met
    assert "fast 5.00 ms" in bar.detail
    assert reached([slow, ours], "p90 against ONNX Runtime fp32").met


def test_an_int8_peer_is_compared_at_its_accuracy_or_better(tmp_path: Path) -> None:
    peer = measured(tmp_path, "peer", "OpenVINO + NNCF", 4.0, accuracy=0.8)
    quick = measured(tmp_path, "quick", "edgescribe", 1.0, accuracy=0.79, runtime="litert")
    exact = measured(tmp_path, "exact", "edgescribe", 2.0, accuracy=0.8, runtime="onnxruntime")
    bar = reached([peer, quick, exact], "p90 against OpenVINO + NNCF")
    assert bar.met
    assert bar.reached == pytest.approx(2.0)
    assert "onnxruntime" in bar.detail
    assert not reached([peer, quick], "p90 against OpenVINO + NNCF").met


def test_ratios_are_taken_round_by_round(tmp_path: Path) -> None:
    peer, ours = (measured(tmp_path, name, "edgescribe", 1.0) for name in ("peer", "ours"))
    peer.figures.latencies_ms[:] = [[3.0], [40.0], [4.0]]
    ours.figures.latencies_ms[:] = [[1.0], [10.0], [2.0]]
    assert ratio(peer, ours) == (3.0, 2.0, 4.0)


def test_quality_size_memory_and_start_of_each_runtime(tmp_path: Path) -> None:
    torch = measured(tmp_path, "torch", "torch fp32", 9.0, accuracy=0.8)
    ours = measured(tmp_path, "ours", "edgescribe", 1.0, accuracy=0.793, runtime="litert")
    other = measured(tmp_path, "other", "edgescribe", 1.5, accuracy=0.791, size=101, runtime="openvino")
    found = {bar.what: bar for bar in bars([torch, ours, other], fp32_mb=500e-6)}
    assert found["p90 against torch fp32"].met
    assert found["p90 against torch fp32"].reached == pytest.approx(9)
    assert found["accuracy, litert"].met
    assert not found["accuracy, openvino"].met
    assert not found["macro F1, openvino"].met
    assert found["artifact size, litert"].met
    assert not found["artifact size, openvino"].met
    assert found["peak memory, litert"].reached == pytest.approx(52.4288)
    assert found["cold start, litert"].reached == pytest.approx(0.9)
    assert "cold start, openvino" not in found
