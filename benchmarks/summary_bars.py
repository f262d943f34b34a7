"""The figures that summarisers have to reach, each set against what one run measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from bars import Bar
from summary_contenders import SummaryContender
from summary_run import SummaryFigures


@dataclass(frozen=True)
class MeasuredSummariser:
    """A contender with what it gave; ``rouge_l`` is F1 from 0 to 1 on the test texts, None where there were none."""

    contender: SummaryContender
    figures: SummaryFigures
    tokens: int
    rouge_l: float | None

    @property
    def speeds(self) -> list[float]:
        """Tokens a second by round, reading the source included."""
        return self.figures.speeds(self.tokens)

    @property
    def speed(self) -> float:
        """Their median."""
        return median(self.speeds)


def summary_bars(student: str, measured: Sequence[MeasuredSummariser], memory: bool) -> list[Bar]:
    """The bars that one student's contenders can tell; ``memory``: whether its memory has a bar."""
    ours = [one for one in measured if one.contender.side == "ours" and one.contender.kind == "plain"]
    pruned = [one for one in measured if one.contender.kind == "pruned"]
    peer = next((one for one in measured if one.contender.engine == "ctranslate2"), None)
    torch = next((one for one in measured if one.contender.engine == "transformers"), None)
    found = []
    # The same weights: as many bits as the peer has.
    alike = [one for one in ours if one.contender.precision == "w8a8-dynamic"]
    if peer is not None and alike:
        found.append(_faster(f"{student}: against CTranslate2 int8", 1.2, max(alike, key=_speed), peer))
    if peer is not None and torch is not None and torch.rouge_l is not None and pruned:
        able = [one for one in pruned if one.rouge_l is not None and one.rouge_l >= 0.99 * torch.rouge_l]
        best = max(able or pruned, key=_speed)
        bar = _faster(f"{student}: pruned and trained, against CTranslate2 int8", 2.0, best, peer, bool(able))
        found.append(bar)
        share = 100 * (best.rouge_l or 0.0) / torch.rouge_l
        found.append(Bar(f"{student}: its ROUGE-L", 99.0, share, "% of fp32", True, share >= 99,
                         f"{best.rouge_l or 0.0:.4f} against {torch.rouge_l:.4f}"))  # fmt: skip
    if torch is not None and ours:
        found.append(_faster(f"{student}: against transformers fp32", 4.0, max(ours, key=_speed), torch))
    if memory and peer is not None and ours:
        least = [min(some, key=lambda one: one.figures.peak_mb) for some in (ours, alike) if some]
        for one in {one.contender.name: one for one in least}.values():
            share = one.figures.peak_mb / peer.figures.peak_mb
            found.append(Bar(f"{student}: peak memory, {one.contender.name}", 0.8, share, "of CTranslate2's", False,
                             share <= 0.8, f"{one.figures.peak_mb:.0f} and {peer.figures.peak_mb:.0f} MB"))  # fmt: skip
    return found


def long_bar(runtime: str, words: Sequence[int], peaks_mib: Sequence[float]) -> Bar:
    """Peak memory of the longest transcript over that of the shortest."""
    grown = 100 * (peaks_mib[-1] / peaks_mib[0] - 1)
    detail = ", ".join(f"{n:,} words {peak:.1f} MiB" for n, peak in zip(words, peaks_mib, strict=True))
    return Bar(f"memory of long transcripts, {runtime}", 10.0, grown, "% more", False, grown <= 10, detail)


def _speed(one: MeasuredSummariser) -> float:
    return one.speed


def _faster(what: str, times: float, ours: MeasuredSummariser, peer: MeasuredSummariser, able: bool = True) -> Bar:
    rounds = [own / theirs for own, theirs in zip(ours.speeds, peer.speeds, strict=True)]
    reached = median(rounds)
    detail = (f"{ours.contender.name} {ours.speed:.0f} tok/s, {peer.contender.name} {peer.speed:.0f} tok/s; rounds "
              f"{min(rounds):.2f} to {max(rounds):.2f}")  # fmt: skip
    return Bar(what, times, reached, "times", True, able and reached >= times, detail)
