from __future__ import annotations

from edgescribe.device_profiles.budgets import Figure, check, describe, over
from edgescribe.device_profiles.schema import Budget

BUDGET = Budget(p90_ms=50, tokens_per_s=10, peak_rss_mib=100, disk_mib=8)


def test_each_granted_figure_gets_a_verdict() -> None:
    findings = check(
        BUDGET,
        {
            "p90_ms": Figure(50.0, "measured"),
            "tokens_per_s": Figure(9.9, "emulated"),
            "peak_rss_mib": Figure(100.5, "estimated"),
            "ttft_ms": Figure(1e9, "measured"),
        },
    )
    assert [(f.key, f.verdict, f.how) for f in findings] == [
        ("p90_ms", "met", "measured"),
        ("tokens_per_s", "over", "emulated"),
        ("peak_rss_mib", "over", "estimated"),
        ("disk_mib", "unknown", None),
    ]
    assert [f.key for f in over(findings)] == ["tokens_per_s", "peak_rss_mib"]


def test_a_figure_that_is_not_a_number_is_over() -> None:
    nan = Figure(float("nan"), "measured")
    assert {f.verdict for f in check(BUDGET, dict.fromkeys(("p90_ms", "tokens_per_s", "disk_mib"), nan))} == {
        "over",
        "unknown",
    }


def test_a_budget_without_limits_asks_nothing() -> None:
    assert check(Budget(), {"p90_ms": Figure(1.0, "measured")}) == []


def test_findings_read_as_sentences() -> None:
    findings = check(BUDGET, {"p90_ms": Figure(61.23, "measured"), "tokens_per_s": Figure(12, "simulated")})
    assert [describe(f) for f in findings][:3] == [
        "p90 latency: 61.23 ms (measured), at most 50 ms granted: over",
        "decode rate: 12 tokens/s (simulated), at least 10 tokens/s granted: met",
        "peak resident memory: not known, at most 100 MiB granted: unknown",
    ]
