"""A summariser's report by itself: intervals, the baseline's row, texts of users that stay text."""

from __future__ import annotations

import html
import json
from typing import Any

import pytest
from edgescribe.converters.bootstrap import Interval
from edgescribe.converters.conversion_report import ConversionReport, Sample, Stage, Timing, TrainingCurve
from edgescribe.converters.metrics import SummaryMetrics
from edgescribe.converters.report import report_html, report_json
from edgescribe.sdk.manifest import Provenance

NASTY = '<script>alert("x")</script> & so on'


def metrics(rouge: float, **others: Any) -> SummaryMetrics:
    def interval(value: float, unit: str = "share") -> Interval:
        return Interval(value=value, low=0.9 * value, high=min(1.1 * value, 1), unit=unit, meaning="m")

    scores = {name: interval(rouge * share) for name, share in (("rouge1", 1.1), ("rouge2", 0.5), ("rougeL", 1.0))}
    scores |= {"chrf": interval(41.5, "points"), "compression": interval(8.25, "ratio"), "ter": interval(80.0)}
    return SummaryMetrics(examples=50, scores=scores, **others)


@pytest.fixture
def report() -> ConversionReport:
    timing = Timing(
        how="measured", engine="litert 2.3", threads=2, tokens=512, samples=64, p50_ms=2.0, p90_ms=2.5, p99_ms=4.0,
        throughput_per_s=480.0, peak_rss_mib=64.0, load_ms=30.0, cold_ms=210.0, ttft_ms=41.0, tokens_per_s=333.0,
    )  # fmt: skip
    seen = {"cross_entropy": 2.125, "perplexity": 8.37, "token_accuracy": 0.62, "agreement": 0.875}
    return ConversionReport(
        name="minutes",
        task="summarize",
        family="t5",
        stages=(
            Stage(name="first sentence", kind="baseline", metrics=metrics(0.214), size_mib=0.0),
            Stage(name="student", kind="student", metrics=metrics(0.402), size_mib=16.0, parameters=4_000_000),
            Stage(
                name="litert/w8a8-dynamic", kind="artifact", metrics=metrics(0.398, **seen), size_mib=4.5, timing=timing
            ),
        ),
        training=(
            TrainingCurve(name="grid", losses=(2.0, 1.0), score_steps=(1, 2), scores=(-3.25, -2.5), seconds=4.0),
        ),
        provenance=Provenance(
            source="student", source_sha256="0" * 64, recipe={}, seed=0, data_sha256={}, versions={},
            created="2026-01-01T00:00:00Z",
        ),
        machine="a machine",
        samples=(Sample(prompt=NASTY, texts={"student": NASTY, "litert/w8a8-dynamic": ""}, reference=NASTY),),
    )  # fmt: skip


def test_figures_with_their_intervals(report: ConversionReport) -> None:
    page = report_html(report)
    for words in (
        "39.8 %", "35.8 % to 43.8 %", "8.25", "41.5", "62.0 %", "87.5 %", "333 tokens/s", "first token after 41 ms",
        "text of 512 tokens", "ROUGE-L against latency", "validation score, nats a token", "-0.4 points",
    ):  # fmt: skip
        assert words in html.unescape(page), words
    rows = page.split("<tr")
    (baseline,) = [row for row in rows if ">first sentence<" in row]
    assert "<td>–</td>" in baseline
    assert "0 MiB" not in baseline
    content = json.loads(report_json(report))
    assert content["best_artifact"] == "litert/w8a8-dynamic"
    assert content["stages"][2]["metrics"]["scores"]["ter"]["value"] == 80.0


def test_texts_stay_text_and_an_empty_summary_is_told(report: ConversionReport) -> None:
    page = report_html(report)
    assert "<script" not in page
    assert html.unescape(page).count(NASTY) == 3
    assert "(nothing)" in page
