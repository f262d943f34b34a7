"""Writes what a conversion came to as ``report.html``, one file that needs nothing else, and ``report.json``.

The page loads nothing: styles and plots stand in it, and its content security policy forbids the rest. Names of
labels and the like come from users' data and are escaped.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from ..device_profiles.budgets import Finding
from ..errors import OutputError
from ..sdk.budget_check import BudgetReport
from .conversion_report import ConversionReport, Stage
from .evaluate import CONFORMANCE_POINTS
from .metrics import ClassificationMetrics
from .report_plots import plots

HTML_NAME, JSON_NAME = "report.html", "report.json"

_METRIC_WORDS = {
    "accuracy": "Accuracy",
    "macro_f1": "Macro F1",
    "macro_precision": "Precision",
    "macro_recall": "Recall",
    "macro_auc": "AUC",
    "expected_calibration_error": "ECE",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "chrf": "chrF",
    "compression": "Compression",
    "copied_3grams": "Copied",
    "entity_faithfulness": "Faithful",
    "token_accuracy": "Next token right",
    "cosine": "Cosine",
    "least_cosine": "Least cosine",
    "pearson": "Pearson",
    "spearman": "Spearman",
    "cross_entropy": "Cross-entropy, nats",
    "perplexity": "Perplexity",
    "agreement": "Agreement",
    "bits_per_character": "Bits a character",
}

_NUMBERS = ("cross_entropy", "perplexity", "bits_per_character", "chrf", "compression")
"""Metrics that are no shares."""

_SHOWN_INTERVALS = ("rouge1", "rouge2", "rougeL")
"""Metrics of summaries whose confidence intervals are shown."""


@dataclass(frozen=True)
class Verdict:
    """A device's verdict in words. ``state``: ``met``, ``likely`` (by estimate), ``over`` or ``unknown``."""

    budget: BudgetReport
    state: str
    words: str


def write_report(report: ConversionReport, folder: str | os.PathLike[str]) -> Path:
    """Write ``report.html`` and ``report.json`` into ``folder``, making it; returns the path of the HTML.

    Raises:
        OutputError: the folder cannot be written; a file that was there is as it was.
    """
    target = Path(folder)
    contents = {JSON_NAME: report_json(report), HTML_NAME: report_html(report).encode("utf-8", "replace")}
    try:
        target.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            _write(target / name, content)
    except OSError as error:
        raise OutputError(
            f"{target}: the report cannot be written ({error.strerror or error}); choose a folder that can be written"
        ) from error
    return target / HTML_NAME


def report_json(report: ConversionReport) -> bytes:
    """The report as JSON, with ``met`` added to each verdict and the name of the artifact shown as best."""
    content = msgspec.to_builtins(report)
    for verdict, plain in zip(report.verdicts, content["verdicts"], strict=True):
        plain["met"] = verdict.met
    best = best_artifact(report)
    content["best_artifact"] = best.name if best else None
    return msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n"


def report_html(report: ConversionReport) -> str:
    """The report as one HTML page."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(
        percent=_percent, number=_number, count=_count, duration=_duration, figure=_figure
    )
    template = environment.from_string(Path(__file__).with_name("report.html.jinja").read_text(encoding="utf-8"))
    best = best_artifact(report)
    named = {stage.kind: stage for stage in reversed(report.stages) if stage.kind != "artifact"}
    return template.render(
        report=report,
        best=best,
        before=named.get("student"),
        verdicts=[_verdict(budget) for budget in report.verdicts],
        metric_names={name: _METRIC_WORDS[name] for name in _metric_names(report)},
        numbers=_NUMBERS,
        shown_intervals=_SHOWN_INTERVALS if report.task == "summarize" else (),
        writes=report.task in ("generate", "summarize"),
        hows=sorted({stage.timing.how for stage in report.stages if stage.timing is not None}),
        label_metrics=best.metrics.labels if best and isinstance(best.metrics, ClassificationMetrics) else (),
        plots=[(plot, Markup(plot.svg)) for plot in plots(report, best)],  # matplotlib escapes its texts
        recipe=list(_flat(report.recipe)),
        conformance=CONFORMANCE_POINTS,
    )


def best_artifact(report: ConversionReport) -> Stage | None:
    """The artifact that is looked at closely: the one with the lowest p90, or the first where none was timed."""
    artifacts = [stage for stage in report.stages if stage.kind == "artifact" and stage.metrics is not None]
    return min(artifacts, key=lambda stage: stage.timing.p90_ms if stage.timing else float("inf"), default=None)


def _verdict(budget: BudgetReport) -> Verdict:
    over = [finding.name for finding in budget.findings if finding.verdict == "over"]
    unknown = [finding.name for finding in budget.findings if finding.verdict == "unknown"]
    guessed = [finding.name for finding in budget.findings if finding.how not in ("measured", None)]
    if over:
        return Verdict(budget, "over", f"Over budget: {', '.join(over)}")
    if unknown:
        return Verdict(budget, "unknown", f"Not known: {', '.join(unknown)}")
    if guessed:
        return Verdict(budget, "likely", "Fits by estimate; measure on the device to be sure")
    return Verdict(budget, "met", "Fits, measured")


def _metric_names(report: ConversionReport) -> list[str]:
    found: dict[str, None] = {}
    for stage in report.stages:
        if stage.metrics is not None:
            found.update(dict.fromkeys(stage.metrics.values()))
    return [name for name in _METRIC_WORDS if name in found]


def _flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as dotted names with their values in words; what is not set is left out."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.")
        elif isinstance(value, bool):
            yield f"{above}{name}", "yes" if value else "no"
        elif value is not None:
            yield f"{above}{name}", str(value)


def _figure(finding: Finding, value: float | None) -> str:
    return "not known" if value is None else f"{_number(value)} {finding.unit}"


def _percent(share: float | None, digits: int = 1) -> str:
    return "–" if share is None else f"{100 * share:.{digits}f} %"


def _number(value: float | None) -> str:
    """Three digits that count."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _count(value: float | None) -> str:
    return "–" if value is None else f"{value:,}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all."""
    with tempfile.TemporaryDirectory(prefix=f".{path.stem}-", dir=path.parent) as scratch:
        draft = Path(scratch, path.name)
        with draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
