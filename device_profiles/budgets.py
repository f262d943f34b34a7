"""Whether figures keep to the budget that a device grants a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from .schema import Budget

How = Literal["measured", "estimated", "emulated", "simulated"]
Verdict = Literal["met", "over", "unknown"]

_UNITS = {
    "p90_ms": ("p90 latency", "ms"),
    "ttft_ms": ("time to first token", "ms"),
    "tokens_per_s": ("decode rate", "tokens/s"),
    "peak_rss_mib": ("peak resident memory", "MiB"),
    "disk_mib": ("size on disk", "MiB"),
}
_AT_LEAST = frozenset({"tokens_per_s"})


class Figure(msgspec.Struct, frozen=True):
    """One figure of an artifact in the unit of the budget's field, and how it was come by."""

    value: float
    how: How


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One granted figure against what an artifact needs.

    ``key`` is the field of :class:`~edgescribe.device_profiles.schema.Budget`; ``value`` and ``how`` are None when
    the figure is not known. A verdict on an estimated, emulated or simulated figure says nothing certain of the
    device: ``how`` has to be shown beside it.
    """

    key: str
    name: str
    unit: str
    granted: float
    value: float | None
    how: How | None
    verdict: Verdict


def check(budget: Budget, figures: Mapping[str, Figure]) -> list[Finding]:
    """Compare figures with a budget: one finding for each figure that the budget limits, in the budget's order.

    Args:
        budget: limits; a field that is None grants without limit and gives no finding.
        figures: by the budget's field names (``p90_ms``, ``peak_rss_mib`` ...); others are passed over.
            They must have been taken at ``budget.tokens`` tokens.
    """
    findings = []
    for key, (name, unit) in _UNITS.items():
        granted = getattr(budget, key)
        if granted is None:
            continue
        figure = figures.get(key)
        findings.append(
            Finding(
                key=key,
                name=name,
                unit=unit,
                granted=granted,
                value=None if figure is None else figure.value,
                how=None if figure is None else figure.how,
                verdict="unknown" if figure is None else _verdict(key, figure.value, granted),
            )
        )
    return findings


def over(findings: Sequence[Finding]) -> list[Finding]:
    """Those findings that are over budget."""
    return [finding for finding in findings if finding.verdict == "over"]


def describe(finding: Finding) -> str:
    """One line for people: ``p90 latency: 61.2 ms (measured), at most 50 ms granted: over``."""
    got = "not known" if finding.value is None else f"{finding.value:.4g} {finding.unit} ({finding.how})"
    bound = "at least" if finding.key in _AT_LEAST else "at most"
    return f"{finding.name}: {got}, {bound} {finding.granted:g} {finding.unit} granted: {finding.verdict}"


def _verdict(key: str, value: float, granted: float) -> Verdict:
    # Written so that a figure that is not a number counts as over.
    kept = value >= granted if key in _AT_LEAST else value <= granted
    return "met" if kept else "over"
