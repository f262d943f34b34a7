"""The figures to reach, each set against what one run measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from contenders import Contender, Group
from interleaved_run import Figures

TIMES_FASTER: Mapping[Group, float] = {
    "torch fp32": 6.0,
    "ONNX Runtime fp32": 3.0,
    "ONNX Runtime quantize_dynamic": 1.5,
    "OpenVINO + NNCF": 1.5,
}
INT8_PEERS: tuple[Group, ...] = ("ONNX Runtime quantize_dynamic", "OpenVINO + NNCF")
OF_FP32_QUALITY = 0.99
OF_FP32_SIZE = 0.2
MOST_RSS_MB = {"onnxruntime": 80.0, "openvino": 130.0, "litert": 60.0}
MOST_COLD_S = {"onnxruntime": 1.0, "litert": 1.0}
"""OpenVINO's start is shown and has no bar."""


@dataclass(frozen=True)
class Quality:
    """``accuracy`` and ``macro_f1`` on the test texts, 0 to 1."""

    accuracy: float
    macro_f1: float


@dataclass(frozen=True)
class Measured:
    """A contender with what it gave."""

    contender: Contender
    figures: Figures
    quality: Quality

    @property
    def peak_rss_mb(self) -> float:
        """Largest peak of resident memory among the fresh processes, in megabytes (10^6 bytes)."""
        return max(self.figures.peak_rss_mib) * 2**20 / 1e6

    @property
    def cold_s(self) -> float:
        """Median time from the start of a process to its first answer, in seconds."""
        return median(self.figures.cold_ms) / 1000


@dataclass(frozen=True)
class Bar:
    """One figure to reach. ``limit`` and ``reached`` are in ``unit``; ``detail`` says between whom."""

    what: str
    limit: float
    reached: float
    unit: str
    at_least: bool
    met: bool
    detail: str = ""


def bars(measured: Sequence[Measured], fp32_mb: float) -> list[Bar]:
    """All bars that can be told from the contenders that ran; ``fp32_mb`` is the float32 checkpoint's size."""
    ours = [one for one in measured if one.contender.group == "edgescribe"]
    found = [
        _faster(fastest([one for one in measured if one.contender.group == group]), ours, times, group in INT8_PEERS)
        for group, times in TIMES_FASTER.items()
        if any(one.contender.group == group for one in measured)
    ]
    reference = next((one for one in measured if one.contender.group == "torch fp32"), None)
    for one in ours:
        runtime = one.contender.runtime
        if reference is not None:
            pairs = (
                ("accuracy", one.quality.accuracy, reference.quality.accuracy),
                ("macro F1", one.quality.macro_f1, reference.quality.macro_f1),
            )
            for name, got, full in pairs:
                share = got / full if full else 0.0
                detail = f"{got:.2%} against {full:.2%}" if name == "accuracy" else f"{got:.4f} against {full:.4f}"
                found.append(
                    Bar(f"{name}, {runtime}", 100 * OF_FP32_QUALITY, 100 * share, "% of fp32", True,
                        share >= OF_FP32_QUALITY, detail)
                )  # fmt: skip
        share = one.contender.mb / fp32_mb
        found.append(
            Bar(f"artifact size, {runtime}", 100 * OF_FP32_SIZE, 100 * share, "% of fp32", False,
                share <= OF_FP32_SIZE, f"{one.contender.mb:.2f} MB of {fp32_mb:.2f} MB")
        )  # fmt: skip
        rss = one.peak_rss_mb
        found.append(
            Bar(f"peak memory, {runtime}", MOST_RSS_MB[runtime], rss, "MB", False, rss <= MOST_RSS_MB[runtime])
        )
        if runtime in MOST_COLD_S:
            limit = MOST_COLD_S[runtime]
            found.append(Bar(f"cold start, {runtime}", limit, one.cold_s, "s", False, one.cold_s < limit))
    return found


def fastest(measured: Sequence[Measured]) -> Measured:
    """The one with the lowest 90th percentile of latency."""
    return min(measured, key=lambda one: one.figures.latency(90))


def ratio(peer: Measured, ours: Measured) -> tuple[float, float, float]:
    """How many times lower our 90th percentile is: median over the rounds, least and largest."""
    rounds = [
        theirs / own for theirs, own in zip(peer.figures.by_round(90), ours.figures.by_round(90), strict=True)
    ]
    return median(rounds), min(rounds), max(rounds)


def _faster(peer: Measured, ours: Sequence[Measured], times: float, as_accurate: bool) -> Bar:
    """Against one peer; where ``as_accurate``, by the fastest of ours that is as accurate, if there is one."""
    able = [one for one in ours if not as_accurate or one.quality.accuracy >= peer.quality.accuracy]
    best = fastest(able or ours)
    reached, least, largest = ratio(peer, best)
    detail = (
        f"{peer.contender.name} {peer.figures.latency(90):.2f} ms, {best.contender.runtime} "
        f"{best.figures.latency(90):.2f} ms; rounds {least:.2f} to {largest:.2f}"
    )
    if as_accurate:
        detail += f"; accuracy {peer.quality.accuracy:.2%} and {best.quality.accuracy:.2%}"
    met = reached >= times and bool(able)
    return Bar(f"p90 against {peer.contender.group}", times, reached, "times lower", True, met, detail)
