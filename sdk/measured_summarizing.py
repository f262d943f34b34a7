"""How a summariser is measured in a process of its own: reading a source, decode steps, and both together.

A turn is a source of the asked number of tokens, then up to :data:`TOKENS` greedy tokens; turns go on until the
effort's calls (decode steps) and seconds are reached. Tokens that would end a summary are written like others.
"""

from __future__ import annotations

import math
import time
from array import array
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from ..runtimes.encoder_decoder_contract import EncoderDecoderSession
from .manifest import Manifest

if TYPE_CHECKING:
    from .measured_process import Effort, ProcessReport, Request
    from .summarizer import Summarizer

TOKENS = 64
"""Tokens written in one turn."""

_PROGRESS_EVERY_S = 0.1


def measured_summarizer(request: Request, started: float, progress: Callable[[float], None]) -> ProcessReport:
    """Answer the request for a summariser; ``started``: ``time.perf_counter()`` before edgescribe was imported.

    Raises:
        UsageError: outputs are asked for: a summariser has none but summaries.
    """
    from .bundle import decode_manifest
    from .load import load_summarizer
    from .measured_process import ProcessReport, peak_rss_mib

    if request.texts_file is not None:
        raise UsageError("what a summariser writes is no outputs; summarise the texts with edgescribe.load_summarizer")
    imported = time.perf_counter()
    summarizer = load_summarizer(
        request.bundle,
        runtime=request.runtime,
        precision=request.precision,
        device=request.device,
        threads=request.threads,
    )
    loaded = time.perf_counter()
    folder = summarizer.info.folder
    summarizer.summarize("A first text, to see how long it takes", max_new_tokens=1, num_beams=1, truncate=True)
    answered = time.perf_counter()
    cold_ms = (time.monotonic_ns() - request.spawned_ns) / 1e6
    start_rss = peak_rss_mib()
    manifest = decode_manifest((folder / "bundle.json").read_bytes(), folder)
    sources = sources_for(manifest, summarizer, request.texts)
    with summarizer.borrowed() as session:
        timed = time_summarizing(
            session, sources, summarizer.start_tokens, request.tokens, request.effort, progress
        )
        peak_rss = peak_rss_mib()
    report = ProcessReport(
        effective=summarizer.effective,
        precision=summarizer.info.precision,
        tokens=request.tokens,
        import_ms=(imported - started) * 1000,
        load_ms=(loaded - imported) * 1000,
        first_ms=(answered - loaded) * 1000,
        cold_ms=cold_ms,
        start_rss_mib=start_rss,
        peak_rss_mib=peak_rss,
        latencies_ms=timed.steps_ms,
        tokenize_ms=None,
        disk_mib=summarizer.info.disk_mib,
        ttft_ms=timed.ttft_ms,
        tokens_per_s=timed.tokens_per_s,
    )
    summarizer.close()
    return report


class TimedSummarizing(msgspec.Struct, kw_only=True):
    """Times of one session in milliseconds: of every decode step, and of every turn until its first token."""

    steps_ms: list[float]
    firsts_ms: list[float]

    @property
    def ttft_ms(self) -> float:
        """Median time from a source's tokens to the first token of its summary."""
        return float(np.median(self.firsts_ms))

    @property
    def tokens_per_s(self) -> float:
        """Tokens a second over all turns, reading their sources included."""
        tokens = len(self.firsts_ms) + len(self.steps_ms)
        return 1000 * tokens / (sum(self.firsts_ms) + sum(self.steps_ms))


def time_summarizing(
    session: EncoderDecoderSession,
    sources: Sequence[NDArray[np.int32]],
    start: Sequence[int],
    tokens: int,
    effort: Effort,
    progress: Callable[[float], None],
) -> TimedSummarizing:
    """Time a session: each of ``sources`` is cut, or repeated, to ``tokens`` tokens; summaries begin with ``start``.

    Raises:
        UsageError: the source context does not hold ``tokens``, or the context no step behind ``start``.
    """
    steps = min(TOKENS - 1, session.context - len(start))
    if not 0 < tokens <= session.source_context:
        raise UsageError(
            f"{tokens} tokens are more than the {session.source_context} that this summariser reads at once; measure "
            f"at {session.source_context} or fewer"
        )
    if steps < 1:
        raise UsageError(f"a context of {session.context} tokens leaves no room to measure a step")
    rows = [np.tile(row, math.ceil(tokens / len(row)))[:tokens] for row in sources]
    _turn(session, rows[0], start, min(steps, max(1, effort.warmup)), array("d"), array("d"))
    times, firsts = array("d"), array("d")
    begun = told = time.perf_counter()
    for turn in range(10**9):
        _turn(session, rows[turn % len(rows)], start, steps, times, firsts)
        now = time.perf_counter()
        part = min(len(times) / effort.samples, (now - begun) / effort.seconds if effort.seconds else 1.0)
        if part >= 1:
            break
        if now - told > _PROGRESS_EVERY_S:
            told = now
            progress(part)
    session.rewind(0)
    return TimedSummarizing(steps_ms=times.tolist(), firsts_ms=firsts.tolist())


def _turn(
    session: EncoderDecoderSession,
    source: NDArray[np.int32],
    start: Sequence[int],
    steps: int,
    times: array[float],
    firsts: array[float],
) -> None:
    before = time.perf_counter()
    session.read(source)
    token = int(session.prefill(start).argmax())
    now = time.perf_counter()
    firsts.append((now - before) * 1000)
    for _ in range(steps):
        before = now
        token = int(session.step(token).argmax())
        now = time.perf_counter()
        times.append((now - before) * 1000)


def sources_for(manifest: Manifest, summarizer: Summarizer, texts: Sequence[str]) -> list[NDArray[np.int32]]:
    """Tokens of the texts, or where there are none those of the known answers' sources."""
    rows = [np.array(summarizer.source_tokens(text), np.int32) for text in texts[:16]]
    found = [row for row in rows if row.size]
    return found or [np.array(answer.source, np.int32) for each in manifest.artifacts for answer in each.source_answers]
