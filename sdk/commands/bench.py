"""``edgescribe bench``: a bundle's latency and memory on this machine, alone or against another bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..console import Result, bar_of_parts, command, figure, table, warn
from .choices import artifact_options, bundle_argument

if TYPE_CHECKING:
    from ..measure import Comparison
    from ..measured_process import ProcessReport


@command(epilog="Every figure comes from a fresh process that imports only what an app imports.")
@bundle_argument
@artifact_options
@click.option("--tokens", type=click.IntRange(2), help="Tokens of each call; by default 128, or all the bundle reads.")
@click.option("--samples", type=click.IntRange(1, 10**6), help="Least number of timed calls.  [default: 256]")
@click.option("--seconds", type=click.FloatRange(0, 86400), help="Least time to measure.  [default: 2]")
@click.option("--published", is_flag=True, help="1,024 calls and 60 s at least: fit to be published.")
@click.option("--input", "source", type=click.Path(path_type=Path), help="Texts to measure with (the first 64).")
@click.option("--against", type=click.Path(path_type=Path), help="A bundle to compare with, measured in turn.")
@click.option("--rounds", type=click.IntRange(1, 100), default=5, show_default=True, help="Turns of a comparison.")
def bench(
    bundle: Path,
    runtime: str | None,
    precision: str | None,
    device: str | None,
    threads: int,
    tokens: int | None,
    samples: int | None,
    seconds: float | None,
    published: bool,
    source: Path | None,
    against: Path | None,
    rounds: int,
) -> Result:
    """Measure latency, start-up time and peak memory of BUNDLE on this machine."""
    from ..bundle import read_bundle
    from ..measure import PUBLISHED, QUICK, Effort, compare, measure_process

    base = PUBLISHED if published else QUICK
    if published and (samples is not None or seconds is not None):
        raise click.UsageError("--published sets --samples and --seconds; leave them out")
    effort = Effort(
        base.samples if samples is None else samples, base.seconds if seconds is None else seconds, base.warmup
    )
    limits = [read_bundle(folder).manifest.tokenizer.max_tokens for folder in (bundle, against) if folder is not None]
    options: dict[str, Any] = {
        "device": device,
        "threads": threads,
        "tokens": tokens or min(128, *limits),
        "effort": effort,
        "texts": _texts(source),
    }
    with bar_of_parts("Measuring") as show:
        if against is None:
            return _single(measure_process(bundle, runtime, precision, on_progress=show, **options))
        both = compare(
            bundle, against, runtime=runtime, precision=precision, rounds=rounds, on_progress=show, **options
        )
    return _against(both, bundle, against)


def figures(report: ProcessReport) -> dict[str, Any]:
    """A report as ``--json`` gives it: percentiles in place of single latencies."""
    from ..measure import PUBLISHED

    total_s = sum(report.latencies_ms) / 1000
    return {
        "effective": report.effective,
        "precision": report.precision,
        "tokens": report.tokens,
        "samples": report.samples,
        "published": report.samples >= PUBLISHED.samples and total_s >= 0.99 * PUBLISHED.seconds,
        "mean_ms": report.mean_ms,
        "p50_ms": report.percentile(50),
        "p90_ms": report.percentile(90),
        "p99_ms": report.percentile(99),
        "throughput_per_s": report.throughput_per_s,
        "tokenize_ms": report.tokenize_ms,
        "import_ms": report.import_ms,
        "load_ms": report.load_ms,
        "first_ms": report.first_ms,
        "cold_ms": report.cold_ms,
        "start_rss_mib": report.start_rss_mib,
        "peak_rss_mib": report.peak_rss_mib,
        "disk_mib": report.disk_mib,
        "ttft_ms": report.ttft_ms,
        "tokens_per_s": report.tokens_per_s,
    }


def _texts(source: Path | None) -> list[str]:
    if source is None:
        return []
    from itertools import islice

    from ...errors import DataError
    from .texts import read_texts

    texts = [row.text for row in islice(read_texts(source, warn), 64)]
    if not texts:
        raise DataError(f"{source}: there is no text in it; give a file with texts to measure with")
    return texts


def _headline(report: ProcessReport) -> str:
    used = report.effective
    return (
        f"{used.runtime} ({used.engine} {used.engine_version}) on {used.device}, {report.precision}, "
        f"{used.threads} thread{'s' if used.threads != 1 else ''}, batch 1, {report.tokens} tokens"
    )


def _single(report: ProcessReport) -> Result:
    data = figures(report)
    latency = "  ".join(f"p{at} {figure(report.percentile(at))}" for at in (50, 90, 99))
    rows = [
        ("latency", f"{latency}  mean {figure(report.mean_ms)} ms"),
        ("throughput", f"{figure(report.throughput_per_s)} calls/s"),
        ("cold start", f"{figure(report.cold_ms)} ms (Python itself, import {figure(report.import_ms)}, "
         f"load {figure(report.load_ms)}, first answer {figure(report.first_ms)})"),
        ("peak memory", f"{figure(report.peak_rss_mib)} MiB resident, "
         f"{figure(report.start_rss_mib)} at the first answer"),
        ("on disk", f"{figure(report.disk_mib)} MiB with its tokenizer"),
    ]  # fmt: skip
    if report.ttft_ms is not None and report.tokens_per_s is not None:
        rows[0] = ("decode step", rows[0][1])
        rows[1] = ("throughput", f"{figure(report.tokens_per_s)} tokens/s")
        rows.insert(0, ("first token", f"{figure(report.ttft_ms)} ms after a text of {report.tokens} tokens"))
    if report.tokenize_ms is not None:
        rows.insert(1, ("tokenizing", f"{figure(report.tokenize_ms)} ms a text, beside the latency"))
    fit = "" if data["published"] else "; not enough to publish (--published)"
    calls = "calls" if report.ttft_ms is None else "steps"
    tail = f"{report.samples:,} {calls} in {figure(sum(report.latencies_ms) / 1000)} s{fit}"
    return Result(data, f"{_headline(report)}\n{table(rows)}\n{tail}")


def _against(both: Comparison, bundle: Path, against: Path) -> Result:
    import statistics

    def middle(reports: list[ProcessReport], name: str) -> float:
        return float(statistics.median(figures(report)[name] for report in reports))

    names = ("p50_ms", "p90_ms", "p99_ms", "cold_ms", "peak_rss_mib", "disk_mib")
    rows = [
        (str(folder), reports[0].effective.runtime, reports[0].precision, *(middle(reports, name) for name in names))
        for folder, reports in ((bundle, both.bundle), (against, both.baseline))
    ]
    header = ("medians", "runtime", "precision", "p50 ms", "p90 ms", "p99 ms", "cold ms", "peak MiB", "MiB")
    low, high = both.p90_ratio_range
    verdict = (
        f"The second takes {figure(both.p90_ratio)} times as long as the first at p90 (median of {len(both.bundle)} "
        f"rounds, {figure(low)} to {figure(high)}), {figure(both.p50_ratio)} times at p50"
    )
    data = {
        "bundle": [figures(report) for report in both.bundle],
        "baseline": [figures(report) for report in both.baseline],
        "p50_ratio": both.p50_ratio,
        "p90_ratio": both.p90_ratio,
        "p90_ratio_range": both.p90_ratio_range,
    }
    return Result(data, f"{table(rows, header)}\n{verdict}")
