"""Measuring in fresh processes: what the figures mean, and that faults come back as themselves."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import edgescribe
import numpy as np
import pytest
from edgescribe.errors import BundleError, EngineError, UsageError
from edgescribe.sdk.measure import Effort, compare, machine_text, measure, measure_process, outputs_of
from edgescribe.sdk.measured_process import percentile
from hypothesis import given
from hypothesis import strategies as st

BRIEF = Effort(samples=5, seconds=0.0, warmup=1)


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=200), st.floats(0, 100))
def test_percentile_is_the_nearest_rank(values: list[float], percent: float) -> None:
    found = percentile(values, percent)
    assert found in values
    below = sum(value <= found for value in values)
    assert below >= percent / 100 * len(values) - 1e-9
    smaller = [value for value in values if value < found]
    assert len(smaller) < max(percent / 100 * len(values), 1) + 1e-9


@pytest.mark.parametrize(("values", "percent"), [([], 50), ([1.0], -1), ([1.0], 101)])
def test_percentile_of_nothing_is_wrong_usage(values: list[float], percent: float) -> None:
    with pytest.raises(UsageError):
        percentile(values, percent)


def test_report_of_a_process(small_bundle: Path) -> None:
    parts: list[float] = []
    report = measure_process(
        small_bundle, tokens=7, threads=1, effort=Effort(samples=20, seconds=0.3, warmup=1), on_progress=parts.append
    )
    assert report.tokens == 7
    assert report.samples >= 20
    assert sum(report.latencies_ms) > 200  # the loop's own time is the rest of the 300 ms
    assert report.effective.runtime == "onnxruntime"
    assert report.effective.threads == 1
    assert report.precision == "fp32"
    assert 0 < report.percentile(50) <= report.percentile(90) <= report.percentile(99) <= max(report.latencies_ms)
    assert min(report.latencies_ms) <= report.mean_ms <= max(report.latencies_ms)
    assert report.cold_ms > report.import_ms + report.load_ms + report.first_ms
    assert 10 < report.start_rss_mib <= report.peak_rss_mib < 500
    assert report.tokenize_ms is None
    assert parts == sorted(parts)
    assert all(0 <= part <= 1 for part in parts)


def test_the_process_has_its_own_memory(small_bundle: Path) -> None:
    ballast = np.ones(200 << 17)  # 200 MiB of this process
    report = measure_process(small_bundle, tokens=4, effort=BRIEF)
    assert ballast.nbytes / 2**20 > report.peak_rss_mib


def test_measurement_for_the_manifest(small_bundle: Path) -> None:
    taken = measure(small_bundle, "onnxruntime", "fp32", device_name="raspberry-pi-5", tokens=8, effort=BRIEF)
    assert (taken.device, taken.how, taken.tokens, taken.samples) == ("raspberry-pi-5", "measured", 8, 5)
    from edgescribe.device_profiles.probe import probe
    from edgescribe.sdk.load import this_machines_cores

    assert taken.machine == machine_text(probe())
    assert taken.machine.endswith(this_machines_cores())  # by which load() knows machines of a kind
    assert taken.throughput_per_s > 0
    with edgescribe.load(small_bundle) as student:
        assert taken.disk_mib == pytest.approx(student.info.disk_mib)


def test_texts_are_what_is_measured(small_bundle: Path) -> None:
    report = measure_process(small_bundle, tokens=32, effort=BRIEF, texts=["a network router", "chess"])
    assert report.tokenize_ms is not None
    assert report.tokenize_ms > 0


def test_outputs_are_the_students(small_bundle: Path) -> None:
    texts = ["a chess puzzle", "the network router", "", "audio " * 100, "line\nbreak \u2603"]
    found = outputs_of(small_bundle, iter(texts))
    with edgescribe.load(small_bundle) as student:
        expected = student.logits(texts)
        lengths = [len(tokens.ids) for tokens in student.tokenizer.tokenize(texts)]
    np.testing.assert_array_equal(found.values, expected)
    assert found.values.dtype == np.float32
    assert found.lengths.tolist() == lengths


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "litert"])
def test_every_runtime(three_runtimes: Path, runtime: str) -> None:
    report = measure_process(three_runtimes, runtime, tokens=9, threads=1, effort=BRIEF)
    assert (report.effective.runtime, report.tokens, report.samples) == (runtime, 9, 5)
    texts = ["a patch for the network", "sound"]
    found = outputs_of(three_runtimes, texts, runtime, threads=1)
    with edgescribe.load(three_runtimes, runtime=runtime, threads=1) as student:
        np.testing.assert_allclose(found.values, student.logits(texts), atol=1e-5)
        assert report.disk_mib == student.info.disk_mib


def test_outputs_of_embeddings_and_tags(bundle_of: Callable[[str], Path]) -> None:
    texts = ["a patch for the network", "sound"]
    vectors = outputs_of(bundle_of("embed"), texts)
    with edgescribe.load(bundle_of("embed")) as student:
        np.testing.assert_allclose(vectors.values, student.embed(texts), atol=1e-5)
    tags = outputs_of(bundle_of("tag"), texts)
    assert tags.values.shape[0] == tags.lengths.sum()
    with edgescribe.load(bundle_of("tag")) as student:
        assert tags.values.shape[1] == len(student.info.labels)
        assert tags.lengths.tolist() == [len(tokens.ids) for tokens in student.tokenizer.tokenize(texts)]


def test_outputs_of_nothing(small_bundle: Path) -> None:
    found = outputs_of(small_bundle, [])
    assert len(found.values) == len(found.lengths) == 0


def test_comparison_in_turns(small_bundle: Path) -> None:
    both = compare(small_bundle, small_bundle, tokens=8, effort=Effort(samples=9, seconds=0, warmup=1), rounds=3)
    assert len(both.bundle) == len(both.baseline) == 3
    assert {report.samples for report in both.bundle + both.baseline} == {3}
    low, high = both.p90_ratio_range
    assert 0 < low <= both.p90_ratio <= high


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": 1}, "tokens is 1"),
        ({"tokens": 33}, "33 tokens are more than the 32"),
        ({"threads": -1}, "threads is -1"),
        ({"effort": Effort(samples=0)}, "samples is 0"),
        ({"effort": Effort(seconds=float("nan"))}, "seconds is nan"),
        ({"runtime": "abacus"}, "abacus"),
    ],
)
def test_wrong_usage(small_bundle: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        measure_process(small_bundle, **{"effort": BRIEF, **options})  # type: ignore[arg-type]


def test_no_round_is_wrong_usage(small_bundle: Path) -> None:
    with pytest.raises(UsageError, match="rounds is 0"):
        compare(small_bundle, small_bundle, rounds=0)


def test_errors_of_the_process_keep_their_class(small_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such folder"):
        measure_process(tmp_path / "missing", effort=BRIEF)
    damaged = tmp_path / "damaged"
    shutil.copytree(small_bundle, damaged)
    (damaged / "tokenizer.json").write_bytes(b"{}")
    with pytest.raises(BundleError, match=r"tokenizer\.json"):
        measure_process(damaged, effort=BRIEF)
    with pytest.raises(EngineError, match="npu"):
        measure_process(small_bundle, device="npu", tokens=8, effort=BRIEF)


def test_a_process_that_dies_is_told(small_bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "sitecustomize.py"
    broken.write_text("import os, sys\nprint('out of luck', file=sys.stderr, flush=True)\nos._exit(7)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(EngineError, match="exit status 7 and no result: out of luck"):
        measure_process(small_bundle, effort=BRIEF)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system has no /proc")
def test_the_process_ends_when_the_caller_is_interrupted(small_bundle: Path) -> None:
    def interrupt(part: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_process(
            small_bundle, tokens=8, effort=Effort(samples=1, seconds=600, warmup=0), on_progress=interrupt
        )
    children = Path(f"/proc/self/task/{_thread_id()}/children")
    if children.exists():
        alive = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children.read_text().split()]
        assert not [line for line in alive if b"measured_process" in line]


def _thread_id() -> int:
    import threading

    assert sys.platform == "linux"
    return threading.get_native_id()
