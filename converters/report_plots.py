"""The report's plots as SVG to stand inside HTML: in the page's fonts, and in its colours, light or dark.

matplotlib draws with stand-in colours that become CSS variables of the page afterwards. Every plot tells in words
what it shows, for those who cannot see it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from io import StringIO
from typing import TYPE_CHECKING, Any

from .conversion_report import ConversionReport, Stage, Timing
from .metrics import ClassificationMetrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Stand-ins and the page's CSS variables. Nothing else may be drawn in these colours.
INK, MUTED, LINE = "#010101", "#020202", "#030303"
SERIES = ("#010203", "#010204", "#010205", "#010206")
_VARIABLES = {INK: "ink", MUTED: "muted", LINE: "line"} | {
    colour: f"series-{number}" for number, colour in enumerate(SERIES, 1)
}
_RUNTIME_COLOURS = {"onnxruntime": SERIES[0], "openvino": SERIES[1], "litert": SERIES[2]}
_MARKERS = ("o", "s", "^", "D", "v", "P")
_MOST_LABELS = 30
_SETTINGS = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a label may hold dollar signs
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.constrained_layout.use": True,
}
_WIDTH = 4.7


@dataclass(frozen=True)
class Plot:
    """A plot.

    Attributes:
        title: its heading.
        svg: the drawing, to stand in HTML as it is.
        words: what it shows, for those who cannot see it.
        caption: what stands below it.
        wide: it needs the page's whole width.
    """

    title: str
    svg: str
    words: str
    caption: str
    wide: bool = False


def plots(report: ConversionReport, best: Stage | None) -> list[Plot]:
    """The plots that a report has figures for; ``best`` is the artifact whose predictions are looked at closely."""
    from matplotlib import rc_context

    with rc_context(_SETTINGS):
        found = [_quality_and_latency(report), _latencies(report)]
        if best is not None and isinstance(best.metrics, ClassificationMetrics):
            found += [_confusion(best.name, best.metrics), _reliability(best.name, best.metrics)]
        found.append(_training(report))
    return [plot for plot in found if plot is not None]


def _timed(report: ConversionReport) -> list[tuple[Stage, Timing]]:
    return [(stage, stage.timing) for stage in report.stages if stage.timing is not None]


def _quality_and_latency(report: ConversionReport) -> Plot | None:
    timed = [(stage, timing, stage.metrics) for stage, timing in _timed(report) if stage.metrics is not None]
    if not timed:
        return None
    figure, axes = _figure(3.6)
    precisions = list(dict.fromkeys(stage.name.partition("/")[2] for stage, _, _ in timed))
    for stage, timing, metrics in timed:
        runtime, _, precision = stage.name.partition("/")
        axes.plot(
            timing.p90_ms,
            100 * metrics.score,
            _MARKERS[precisions.index(precision) % len(_MARKERS)],
            color=_RUNTIME_COLOURS.get(runtime, SERIES[3]),
            markersize=8,
            alpha=0.85,
            label=stage.name,
        )
    word = _score_word(report)
    for stage in report.stages:
        if stage.kind == "student" and stage.metrics is not None:
            axes.axhline(100 * stage.metrics.score, color=MUTED, linestyle="--", linewidth=1, label="student before")
    axes.set_xlim(left=0)
    axes.margins(y=0.3)
    axes.set_xlabel("p90 latency of one call, ms")
    axes.set_ylabel(f"{word}, %")
    axes.grid(True)
    _legend_below(figure, axes)
    words = "; ".join(
        f"{stage.name} {100 * metrics.score:.1f} % at {timing.p90_ms:.3g} ms" for stage, timing, metrics in timed
    )
    title = f"{word[0].upper()}{word[1:]} against latency"
    caption = "Each mark is one artifact: further up is better, further left is faster."
    return Plot(title, _svg(figure, "tradeoff"), f"{word.capitalize()} by artifact: {words}.", caption)


def _latencies(report: ConversionReport) -> Plot | None:
    timed = _timed(report)
    if not timed:
        return None
    figure, axes = _figure(1.1 + 0.42 * len(timed))
    places = range(len(timed))
    for place, (_, timing) in zip(places, timed, strict=True):
        bar = "p90" if place == 0 else None
        axes.barh(place, timing.p90_ms, height=0.55, color=SERIES[0], label=bar)
        axes.plot([timing.p50_ms], [place], "|", color=INK, markersize=12, label="p50" if bar else None)
        axes.plot([timing.p99_ms], [place], "x", color=SERIES[1], markersize=6, label="p99" if bar else None)
    axes.set_yticks(list(places), [_short(stage.name, 26) for stage, _ in timed], color=INK)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel("latency of one call, ms")
    axes.grid(True, axis="x")
    _legend_below(figure, axes)
    words = "; ".join(
        f"{stage.name} p50 {timing.p50_ms:.3g}, p90 {timing.p90_ms:.3g}, p99 {timing.p99_ms:.3g} ms"
        for stage, timing in timed
    )
    caption = "Half of the calls were faster than p50, 90 % faster than p90, 99 % faster than p99."
    return Plot("Latency", _svg(figure, "latency"), f"Latency by artifact: {words}.", caption)


def _confusion(name: str, metrics: ClassificationMetrics) -> Plot:
    shown = [number for number, label in enumerate(metrics.labels) if label.support or _predicted(metrics, number)]
    shown = sorted(shown, key=lambda number: -metrics.labels[number].support)[:_MOST_LABELS]
    shown.sort()
    count = len(shown)
    size = max(_WIDTH, 1.6 + 0.34 * count)
    figure, axes = _figure(size, width=size)
    for row, true in enumerate(shown):
        total = max(1, sum(metrics.confusion[true]))
        for column, predicted in enumerate(shown):
            value = metrics.confusion[true][predicted]
            if not value:
                continue
            colour = SERIES[2] if true == predicted else SERIES[1]
            share = 0.12 + 0.73 * value / total
            axes.add_patch(_rectangle(column, row, colour, share))
            axes.text(column, row, str(value), ha="center", va="center", fontsize=8, color=INK)
    names = [_short(metrics.labels[number].label, 16) for number in shown]
    axes.set_xticks(range(count), names, rotation=90, color=INK)
    axes.set_yticks(range(count), names, color=INK)
    axes.set_xlim(-0.5, count - 0.5)
    axes.set_ylim(count - 0.5, -0.5)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_aspect("equal")
    axes.tick_params(length=0)
    left_out = len(metrics.labels) - count
    note = f" The {left_out} labels with the fewest examples are left out." if left_out > 0 else ""
    mistakes = _mistakes(metrics)
    words = f"Confusion matrix of {name}: one row for each true label, one column for each predicted one. "
    words += (f"Most frequent mistakes: {'; '.join(mistakes)}." if mistakes else "There are no mistakes.") + note
    return Plot(f"Confusion matrix of {name}", _svg(figure, "confusion"), words, words, wide=count > 8)


def _reliability(name: str, metrics: ClassificationMetrics) -> Plot:
    figure, axes = _figure(3.6)
    width = metrics.calibration[0].high - metrics.calibration[0].low
    filled = [each for each in metrics.calibration if each.count]
    axes.bar(
        [100 * (each.low + width / 2) for each in filled],
        [100 * each.accuracy for each in filled],
        width=92 * width,
        color=SERIES[0],
        alpha=0.8,
        label="share that was right",
    )
    axes.plot([0, 100], [0, 100], "--", color=MUTED, linewidth=1, label="as sure as right")
    axes.plot(
        [100 * each.confidence for each in filled],
        [100 * each.accuracy for each in filled],
        "o",
        color=SERIES[1],
        markersize=4,
        label="mean confidence",
    )
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 100)
    axes.set_xlabel("confidence, %")
    axes.set_ylabel("right, %")
    axes.grid(True)
    _legend_below(figure, axes)
    error = 100 * metrics.expected_calibration_error
    mean = sum(each.count * each.confidence for each in filled) / max(1, sum(each.count for each in filled))
    tone = "surer of itself than it is right" if mean > metrics.accuracy else "less sure of itself than it is right"
    words = (
        f"Reliability of {name}: it is on average {100 * mean:.1f} % sure and {100 * metrics.accuracy:.1f} % right "
        f"({tone}); the expected calibration error is {error:.1f} points."
    )
    return Plot(f"Is {name} as sure as it is right?", _svg(figure, "reliability"), words, words)


def _training(report: ConversionReport) -> Plot | None:
    curves = [curve for curve in report.training if curve.losses]
    if not curves:
        return None
    figure, axes = _figure(3.6)
    # Students that write are validated by the mean log-likelihood of a token.
    writes = report.task in ("generate", "summarize")
    factor, unit = (-1, "nats a token") if writes else (100, "%")
    scored = any(curve.scores for curve in curves)
    right: Any = axes.twinx() if scored else None
    start = 0
    words = []
    for number, curve in enumerate(curves):
        colour = SERIES[number % len(SERIES)]
        steps = range(start + 1, start + len(curve.losses) + 1)
        axes.plot(steps, _smooth(curve.losses), color=colour, linewidth=1.4, label=f"{curve.name}: loss")
        text = f"{curve.name}: loss from {curve.losses[0]:.3g} to {_smooth(curve.losses)[-1]:.3g}"
        if curve.scores:
            places = [start + step for step in curve.score_steps]
            scores = [factor * score for score in curve.scores]
            right.plot(places, scores, "o--", color=colour, markersize=4, linewidth=0.8, label=f"{curve.name}: score")
            digits = 3 if writes else 1
            text += f", validation score from {scores[0]:.{digits}f} to {scores[-1]:.{digits}f} {unit}"
        words.append(f"{text} in {len(curve.losses)} steps")
        start += len(curve.losses)
        if number + 1 < len(curves):
            axes.axvline(start + 0.5, color=MUTED, linewidth=0.8, linestyle=":")
    axes.set_xlabel("step")
    axes.set_ylabel("loss (running mean)")
    axes.set_ylim(bottom=0)
    axes.grid(True)
    if scored:
        right.set_ylabel(f"validation score, {unit}")
        right.spines["right"].set_visible(True)
    _legend_below(figure, axes, *([right] if scored else []))
    told = f"{'; '.join(words)}."
    return Plot("Training", _svg(figure, "training"), f"Training: {told}", told)


def _figure(height: float, width: float = _WIDTH) -> tuple[Any, Axes]:
    # Not by pyplot, which would keep the figure and start a window system's parts.
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasSVG(figure)
    return figure, figure.add_subplot()


def _rectangle(column: int, row: int, colour: str, share: float) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=colour, alpha=share, linewidth=0)


def _legend_below(figure: Any, *axes: Axes) -> None:
    handles, labels = [], []
    for each in axes:
        more_handles, more_labels = each.get_legend_handles_labels()
        handles += more_handles
        labels += more_labels
    columns = 3 if sum(map(len, labels)) < 36 else 2
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def _svg(figure: Any, name: str) -> str:
    """The figure's ``<svg>`` element with the page's fonts and colours, and ids that are its own in the page."""
    out = StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|xlink:href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font: \1 system-ui, sans-serif", text)
    text = re.sub(r"font-family: [^;\"]*", "font-family: system-ui, sans-serif", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    # The size is the page's affair; the words beside the plot are what is read aloud.
    return re.sub(r'^<svg [^>]*?viewBox="([^"]*)"[^>]*>', _opening, text, count=1, flags=re.DOTALL)


def _opening(found: re.Match[str]) -> str:
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{escape(found[1])}" aria-hidden="true" focusable="false">'
    )


def _smooth(losses: Sequence[float], span: int = 20) -> list[float]:
    """Mean of the last steps, as the trainer's progress shows it."""
    means, total = [], 0.0
    for number, loss in enumerate(losses):
        total += loss
        if number >= span:
            total -= losses[number - span]
        means.append(total / min(number + 1, span))
    return means


def _predicted(metrics: ClassificationMetrics, label: int) -> int:
    return sum(row[label] for row in metrics.confusion)


def _mistakes(metrics: ClassificationMetrics, most: int = 3) -> list[str]:
    pairs = [
        (count, metrics.labels[true].label, metrics.labels[predicted].label)
        for true, row in enumerate(metrics.confusion)
        for predicted, count in enumerate(row)
        if true != predicted and count
    ]
    pairs.sort(key=lambda pair: (-pair[0], pair[1], pair[2]))
    return [f"{_short(true, 40)} taken for {_short(wrong, 40)} ({count})" for count, true, wrong in pairs[:most]]


def _score_word(report: ConversionReport) -> str:
    return {"embed": "rank correlation", "summarize": "ROUGE-L"}.get(report.task, "accuracy")


def _short(text: str, most: int) -> str:
    """One line of at most so many characters."""
    line = "".join(character if character.isprintable() else " " for character in text)
    return line if len(line) <= most else f"{line[: most - 1]}…"
