"""The process in which :mod:`edgescribe.sdk.measure` takes its figures: a request on stdin, JSON lines on stdout.

It imports what an app imports and no more, so that its memory and start-up time are the app's. Lines that go out:
``{"progress": part}`` now and then, and at last ``{"report": …}`` or ``{"error": {"kind": …, "message": …}}``.
Whatever an engine prints goes to stderr.
"""

from __future__ import annotations

import math
import os
import sys
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ..errors import BundleError, EdgescribeError, EngineError, UsageError
from ..runtimes.contract import Effective, GraphSession

if TYPE_CHECKING:
    from .student import Student

_PROGRESS_EVERY_S = 0.1
_MILLION = 1e6


class Effort(msgspec.Struct, frozen=True):
    """How long to measure: at least ``samples`` calls and ``seconds`` seconds, after ``warmup`` calls."""

    samples: int = 256
    seconds: float = 2.0
    warmup: int = 8


class Request(msgspec.Struct, kw_only=True):
    """What the measured process is asked for.

    ``spawned_ns``: the parent's monotonic clock in nanoseconds just before the process was started.
    ``texts``: what the timed calls are made of; the tokens of the bundle's known answers where there are none.
    ``writes``: the bundle's task is ``generate``; ``summarizes``: it is ``summarize``.
    ``texts_file``: JSON Lines of strings whose outputs go to ``outputs_file`` (``.npz``), or None.
    """

    bundle: str
    runtime: str | None
    precision: str | None
    device: str | None
    threads: int
    tokens: int
    effort: Effort
    texts: list[str]
    spawned_ns: int = 0
    texts_file: str | None = None
    outputs_file: str | None = None
    writes: bool = False
    summarizes: bool = False


class ProcessReport(msgspec.Struct, kw_only=True):
    """What one fresh process measured. Times in milliseconds, memory in MiB.

    Attributes:
        effective: what the session really used.
        precision: the artifact's, as the bundle names it.
        tokens: tokens of each timed call, batch 1 (an artifact of fixed shapes pads them to its next larger one).
        import_ms: importing edgescribe and what loading needs, the engine aside.
        load_ms: ``edgescribe.load``: checks of the files, engine, artifact, tokenizer, known answers.
        first_ms: the first text from string to answer.
        cold_ms: from just before the process was started to that answer.
        start_rss_mib: peak resident memory at that answer.
        peak_rss_mib: peak resident memory after the timed calls.
        latencies_ms: one for each timed call of the artifact, in order.
        tokenize_ms: mean time to turn one of the given texts into tokens; None without texts.
        ttft_ms: of a writer or summariser, whose timed calls are decode steps: from a prompt's or source's tokens to
            the first token (median).
        tokens_per_s: of a writer: while decoding; of a summariser: reading the source included.
        disk_mib: the artifact with its tokenizer.
    """

    effective: Effective
    precision: str
    tokens: int
    import_ms: float
    load_ms: float
    first_ms: float
    cold_ms: float
    start_rss_mib: float
    peak_rss_mib: float
    latencies_ms: list[float]
    tokenize_ms: float | None
    disk_mib: float
    ttft_ms: float | None = None
    tokens_per_s: float | None = None

    @property
    def samples(self) -> int:
        """Number of timed calls."""
        return len(self.latencies_ms)

    def percentile(self, percent: float) -> float:
        """Latency in milliseconds that so many percent of the calls did not exceed."""
        return percentile(self.latencies_ms, percent)

    @property
    def mean_ms(self) -> float:
        """Mean latency in milliseconds."""
        return sum(self.latencies_ms) / len(self.latencies_ms)

    @property
    def throughput_per_s(self) -> float:
        """Calls a second, one after the other."""
        return 1000 / self.mean_ms


def percentile(values: list[float], percent: float) -> float:
    """Nearest-rank percentile: the smallest value that at least ``percent`` percent of ``values`` do not exceed.

    Raises:
        UsageError: there are no values, or ``percent`` is not in 0 to 100.
    """
    if not values or not 0 <= percent <= 100:
        raise UsageError(f"a percentile of {len(values)} values at {percent} percent: give values, and 0 to 100")
    return sorted(values)[max(0, math.ceil(percent / 100 * len(values)) - 1)]


def main(started: float) -> None:
    """Answer one request and end.

    Args:
        started: ``time.perf_counter()`` before edgescribe was imported.
    """
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # engines print to stdout

    def say(message: dict[str, Any]) -> None:
        answers.write(msgspec.json.encode(message) + b"\n")

    try:
        request = msgspec.json.decode(sys.stdin.buffer.read(), type=Request)
        say({"report": _measured(request, started, lambda part: say({"progress": part}))})
    except EdgescribeError as error:
        say({"error": {"kind": type(error).__name__, "message": str(error)}})
    except MemoryError:
        message = f"{request.bundle}: there is not enough memory here to run it"
        say({"error": {"kind": "EngineError", "message": message}})


def _measured(request: Request, started: float, progress: Callable[[float], None]) -> ProcessReport:
    from .load import load

    if request.writes:
        return _measured_writer(request, started, progress)
    if request.summarizes:
        from .measured_summarizing import measured_summarizer

        return measured_summarizer(request, started, progress)
    imported = time.perf_counter()
    student = load(
        request.bundle,
        runtime=request.runtime,
        precision=request.precision,
        device=request.device,
        threads=request.threads,
    )
    loaded = time.perf_counter()
    texts = request.texts or ["A first text, to see how long it takes"]
    getattr(student, student.info.task)(texts[0])
    answered = time.perf_counter()
    cold_ms = (time.monotonic_ns() - request.spawned_ns) / _MILLION
    start_rss = peak_rss_mib()
    latencies = _latencies(student, request, progress)
    peak_rss = peak_rss_mib()
    report = ProcessReport(
        effective=student.effective,
        precision=student.info.precision,
        tokens=request.tokens,
        import_ms=(imported - started) * 1000,
        load_ms=(loaded - imported) * 1000,
        first_ms=(answered - loaded) * 1000,
        cold_ms=cold_ms,
        start_rss_mib=start_rss,
        peak_rss_mib=peak_rss,
        latencies_ms=latencies.tolist(),
        tokenize_ms=_tokenize_ms(student, request.texts) if request.texts else None,
        disk_mib=student.info.disk_mib,
    )
    if request.texts_file is not None and request.outputs_file is not None:
        _save_outputs(student, Path(request.texts_file), Path(request.outputs_file), progress)
    student.close()
    return report


def _measured_writer(request: Request, started: float, progress: Callable[[float], None]) -> ProcessReport:
    from .bundle import decode_manifest
    from .load import load_writer
    from .measured_writing import prompts_for, save_foreseen, time_writing

    imported = time.perf_counter()
    writer = load_writer(
        request.bundle,
        runtime=request.runtime,
        precision=request.precision,
        device=request.device,
        threads=request.threads,
    )
    loaded = time.perf_counter()
    folder = writer.info.folder
    writer.generate("A first text, to see how long it takes", max_new_tokens=1)
    answered = time.perf_counter()
    cold_ms = (time.monotonic_ns() - request.spawned_ns) / _MILLION
    start_rss = peak_rss_mib()
    manifest = decode_manifest((folder / "bundle.json").read_bytes(), folder)
    prompts = prompts_for(manifest, writer.codec, request.texts)
    with writer.borrowed() as session:
        timed = time_writing(session, prompts, request.tokens, request.effort, progress)
        peak_rss = peak_rss_mib()
        if request.texts_file is not None and request.outputs_file is not None:
            save_foreseen(session, writer.codec, Path(request.texts_file), Path(request.outputs_file), progress)
    report = ProcessReport(
        effective=writer.effective,
        precision=writer.info.precision,
        tokens=request.tokens,
        import_ms=(imported - started) * 1000,
        load_ms=(loaded - imported) * 1000,
        first_ms=(answered - loaded) * 1000,
        cold_ms=cold_ms,
        start_rss_mib=start_rss,
        peak_rss_mib=peak_rss,
        latencies_ms=timed.steps_ms,
        tokenize_ms=None,
        disk_mib=writer.info.disk_mib,
        ttft_ms=timed.ttft_ms,
        tokens_per_s=timed.tokens_per_s,
    )
    writer.close()
    return report


def peak_rss_mib() -> float:
    """Peak resident memory of this process in MiB, as the kernel counts it since the program was started.

    Raises:
        EngineError: this system does not tell.
    """
    try:
        with Path("/proc/self/status").open() as file:
            for line in file:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) / 1024
    except OSError:
        pass
    try:
        import resource
    except ImportError as error:
        raise EngineError("this system does not tell a process's peak memory; measure on Linux or macOS") from error
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 1024)


def _session(student: Student) -> GraphSession:
    session = student._session
    if session is None:
        raise EngineError("the student was closed while it was measured")
    return session


def _latencies(student: Student, request: Request, progress: Callable[[float], None]) -> array[float]:
    session, effort = _session(student), request.effort
    feeds = [_feeds(student, ids) for ids in _token_rows(student, request)]
    for turn in range(effort.warmup):
        session.run(feeds[turn % len(feeds)])
    latencies = array("d")
    begun = told = time.perf_counter()
    while True:
        turn_feeds = feeds[len(latencies) % len(feeds)]
        before = time.perf_counter()
        session.run(turn_feeds)
        after = time.perf_counter()
        latencies.append((after - before) * 1000)
        part = min(len(latencies) / effort.samples, (after - begun) / effort.seconds if effort.seconds else 1.0)
        if part >= 1:
            return latencies
        if after - told > _PROGRESS_EVERY_S:
            told = after
            progress(part)


def _token_rows(student: Student, request: Request) -> list[list[int]]:
    """Token ids for the timed calls, each of exactly ``request.tokens``: real tokens, cut or repeated."""
    if request.tokens > student.info.max_tokens:
        raise UsageError(
            f"{request.tokens} tokens are more than the {student.info.max_tokens} that {student.info.name!r} reads; "
            f"measure at {student.info.max_tokens} or fewer"
        )
    if request.texts:
        rows = [list(text.ids) for text in student.tokenizer.tokenize(request.texts[:64])]
    else:
        rows = _known_rows(student)
    return [(row * math.ceil(request.tokens / len(row)))[: request.tokens] for row in rows]


def _known_rows(student: Student) -> list[list[int]]:
    from .bundle import decode_manifest

    info = student.info
    manifest = decode_manifest((info.folder / "bundle.json").read_bytes(), info.folder)
    rows = []
    for artifact in manifest.artifacts:
        for answer in artifact.known_answers:
            masks = answer.feeds.get("attention_mask") or [[1] * len(row) for row in answer.feeds["input_ids"]]
            for ids, mask in zip(answer.feeds["input_ids"], masks, strict=True):
                rows.append([token for token, kept in zip(ids, mask, strict=True) if kept])
    rows = [row for row in rows if row]
    if not rows:
        raise BundleError(f"{info.folder}: the known answers hold no tokens to measure with; give texts")
    return rows


def _feeds(student: Student, ids: list[int]) -> dict[str, Any]:
    import numpy as np

    row = np.asarray([ids], np.int32)
    values = {"input_ids": row, "attention_mask": np.ones_like(row), "token_type_ids": np.zeros_like(row)}
    return {spec.name: values[spec.name] for spec in _session(student).inputs}


def _tokenize_ms(student: Student, texts: list[str]) -> float:
    few = texts[:64]
    before = time.perf_counter()
    for text in few:
        student.tokenizer.tokenize([text])
    return (time.perf_counter() - before) * 1000 / len(few)


def _save_outputs(student: Student, texts: Path, outputs: Path, progress: Callable[[float], None]) -> None:
    """One text at a time, as an app runs them; the texts are read as a stream."""
    import numpy as np

    session = _session(student)
    names = [spec.name for spec in session.inputs]
    values, lengths = [], []
    size, told = max(1, texts.stat().st_size), time.perf_counter()
    with texts.open("rb") as file:
        for line in file:
            tokens = student.tokenizer.tokenize([msgspec.json.decode(line, type=str)])
            result = session.run(student.tokenizer.pad(tokens).feeds(names))
            (value,) = result.values()
            values.append(value[0] if value.ndim == 3 else value)
            lengths.append(len(tokens[0].ids))
            if time.perf_counter() - told > _PROGRESS_EVERY_S:
                told = time.perf_counter()
                progress(file.tell() / size)
    stacked = np.concatenate(values) if values else np.zeros((0, 0), np.float32)
    with outputs.open("wb") as file:
        np.savez(file, values=stacked, lengths=np.asarray(lengths, np.int64))
