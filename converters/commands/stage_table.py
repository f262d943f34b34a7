"""Metrics, size and speed of a conversion's stages as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...sdk.console import figure, table

if TYPE_CHECKING:
    from ..conversion_report import Stage

_SHOWN = {
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "macro_auc": "AUC",
    "expected_calibration_error": "ECE",
    "cosine": "cosine",
    "spearman": "rank correlation",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "entity_faithfulness": "faithful",
    "cross_entropy": "nats a token",
    "agreement": "agreement",
}


def stage_table(stages: Sequence[Stage]) -> str:
    """One row for each stage; quality is in shares, times in milliseconds at batch 1."""
    found = [stage.metrics.values() if stage.metrics is not None else {} for stage in stages]
    names = [name for name in _SHOWN if any(name in values for values in found)]
    timed = any(stage.timing is not None for stage in stages)
    rows = []
    for stage, values in zip(stages, found, strict=True):
        row = [stage.name, *(f"{values[name]:.4f}" if name in values else "–" for name in names)]
        row.append(figure(stage.size_mib) if stage.kind != "baseline" else "–")
        if timed:
            timing = stage.timing
            figures = (timing.p50_ms, timing.p90_ms, timing.peak_rss_mib) if timing is not None else (None,) * 3
            row += [figure(value) if value is not None else "–" for value in figures]
        rows.append(row)
    header = ["", *(_SHOWN[name] for name in names), "MiB", *(("p50 ms", "p90 ms", "memory MiB") if timed else ())]
    return table(rows, header)
