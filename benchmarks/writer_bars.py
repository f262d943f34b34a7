"""The figures that writers are to reach, and what one run reached."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from bars import Bar
from writer_contenders import WriterContender
from writer_run import WriterFigures

MIB = 2**20 / 1e6
MOST_MB = {8: 140.0, 4: 85.0}


@dataclass(frozen=True)
class MeasuredWriter:
    """A contender with what it gave; ``nll`` in nats a token of the unpruned student's, on the held-out texts."""

    contender: WriterContender
    figures: WriterFigures
    nll: float

    @property
    def peak_mb(self) -> float:
        """The largest of its processes' peak memory, in 10^6 bytes."""
        return max(self.figures.peak_rss_mib) * MIB

    @property
    def speed(self) -> float:
        """Tokens a second while decoding, the median over the rounds."""
        return median(self.figures.speeds)


def writer_bars(measured: Sequence[MeasuredWriter], fp32_nll: float) -> list[Bar]:
    """The bars for which there are contenders on both sides."""
    ours = [one for one in measured if one.contender.side == "ours"]
    peers = [one for one in measured if one.contender.side == "peer"]
    unpruned = [one for one in ours if one.contender.kind != "pruned"]
    pruned = [one for one in ours if one.contender.kind == "pruned"]
    found: list[Bar] = []
    if peers:
        best = max(peers, key=lambda one: one.speed)
        found += _decoding("decode, unpruned", 1.0, best, unpruned)
        found += _decoding("decode, pruned", 1.6, best, pruned)
        found += _lookup(best, peers, unpruned)
    llama = [one for one in peers if one.contender.engine == "llama.cpp"]
    if llama and unpruned:
        found.append(_prefill(llama, unpruned))
        found += [bar for one in unpruned for bar in _memory(one, llama)]
    for one in unpruned:
        name = one.contender.name
        if one.contender.bits == 4 and one.contender.engine in ("onnxruntime", "litert"):
            found.append(Bar(f"peak memory, {name}", 200.0, one.peak_mb, "MB", False, one.peak_mb < 200))
        most = MOST_MB[one.contender.bits]
        found.append(Bar(f"artifact, {name}", most, one.contender.mb, "MB", False, one.contender.mb <= most))
    for one in (each for each in ours if each.figures.python_share):
        share = 100 * median(one.figures.python_share)
        found.append(Bar(f"Python's share, {one.contender.name}", 5.0, share, "%", False, share <= 5))
    return found + _won_back(unpruned, fp32_nll)


def _decoding(what: str, limit: float, peer: MeasuredWriter, ours: Sequence[MeasuredWriter]) -> list[Bar]:
    """The fastest of ours that foresees no worse than the fastest peer; where none does, the nearest to it."""
    if not ours:
        return []
    good = [one for one in ours if one.nll <= peer.nll]
    one = max(good, key=lambda each: each.speed) if good else min(ours, key=lambda each: each.nll)
    least, middle, most = ratio(one, peer, lambda figures: figures.speeds)
    detail = (f"{one.contender.name} {one.speed:.0f} tok/s, NLL {one.nll:.4f}; {peer.contender.name} "
              f"{peer.speed:.0f} tok/s, NLL {peer.nll:.4f}; rounds {least:.2f} to {most:.2f}")  # fmt: skip
    return [Bar(what, limit, middle, "times the best peer", True, bool(good) and middle >= limit, detail)]


def _lookup(best: MeasuredWriter, peers: Sequence[MeasuredWriter], ours: Sequence[MeasuredWriter]) -> list[Bar]:
    fastest = max(peers, key=lambda one: one.figures.plain.tokens_per_s)
    good = [one for one in ours if one.nll <= best.nll and one.figures.lookup.tokens_per_s]
    if not good or not fastest.figures.plain.tokens_per_s:
        return []
    one = max(good, key=lambda each: each.figures.lookup.tokens_per_s)
    lookup = one.figures.lookup
    reached = lookup.tokens_per_s / fastest.figures.plain.tokens_per_s
    detail = (f"{one.contender.name} {lookup.tokens_per_s:.0f} tok/s, {lookup.accepted_share:.0%} of tokens copied; "
              f"{fastest.contender.name} {fastest.figures.plain.tokens_per_s:.0f} tok/s")  # fmt: skip
    return [Bar("rewriting with prompt lookup", 2.2, reached, "times the best peer", True, reached >= 2.2, detail)]


def _prefill(llama: Sequence[MeasuredWriter], ours: Sequence[MeasuredWriter]) -> Bar:
    peer = min(llama, key=lambda one: median(one.figures.prefills))
    one = min(ours, key=lambda each: median(each.figures.prefills))
    least, middle, most = ratio(one, peer, lambda figures: figures.prefills)
    detail = (f"{one.contender.name} {median(one.figures.prefills):.0f} ms; {peer.contender.name} "
              f"{median(peer.figures.prefills):.0f} ms; rounds {least:.2f} to {most:.2f}")  # fmt: skip
    return Bar("prefill", 0.5, middle, "of llama.cpp's", False, middle <= 0.5, detail)


def _memory(one: MeasuredWriter, llama: Sequence[MeasuredWriter]) -> list[Bar]:
    """Against llama.cpp with as many bits."""
    return [
        Bar(f"peak memory against {peer.contender.name}, {one.contender.name}", 1.2, one.peak_mb / peer.peak_mb,
            "times", False, one.peak_mb <= 1.2 * peer.peak_mb, f"{one.peak_mb:.0f} and {peer.peak_mb:.0f} MB")
        for peer in llama
        if peer.contender.bits == one.contender.bits
    ]  # fmt: skip


def _won_back(ours: Sequence[MeasuredWriter], fp32_nll: float) -> list[Bar]:
    """Of the likelihood that int4 after training loses, the share that a trained int4 of the same runtime wins back."""
    found = []
    lost = {
        one.contender.engine: one.nll - fp32_nll
        for one in ours
        if one.contender.kind == "plain" and one.contender.bits == 4
    }
    for one in ours:
        before = lost.get(one.contender.engine, 0.0)
        if one.contender.kind == "trained" and one.contender.bits == 4 and before > 0:
            share = 100 * (1 - (one.nll - fp32_nll) / before)
            detail = f"fp32 {fp32_nll:.4f}, after training {before + fp32_nll:.4f}, trained {one.nll:.4f}"
            found.append(Bar(f"NLL won back, {one.contender.engine}", 80.0, share, "%", True, share >= 80, detail))
    return found


def ratio(
    one: MeasuredWriter, other: MeasuredWriter, values: Callable[[WriterFigures], list[float]]
) -> tuple[float, float, float]:
    """Least, median and largest over the rounds of the first's value over the other's."""
    ratios = [a / b for a, b in zip(values(one.figures), values(other.figures), strict=True)]
    return min(ratios), median(ratios), max(ratios)
