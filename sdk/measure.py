"""Latency, memory and start-up time of a bundle, each taken in a fresh process that imports only the device side.

Measuring follows MLPerf Mobile's single-stream scenario: one call after the other at batch 1, after a warm-up,
until both a number of calls and a number of seconds are reached; the figure of merit is the 90th percentile
(nearest rank). A figure is fit to be published from 1,024 calls and 60 seconds on (:data:`PUBLISHED`).

What runs in the process is :mod:`edgescribe.sdk.measured_process`; the same code gives the outputs that accuracy is
computed from (:func:`outputs_of`), so that what is fast and what is right are one thing.
"""

from __future__ import annotations

import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from .. import errors
from ..errors import EdgescribeError, EngineError, UsageError
from .bundle import task_of
from .manifest import Measurement
from .measured_process import Effort, ProcessReport, Request

if TYPE_CHECKING:
    from ..device_profiles.probe import Machine

__all__ = [
    "PUBLISHED",
    "QUICK",
    "Comparison",
    "Effort",
    "Outputs",
    "ProcessReport",
    "compare",
    "machine_text",
    "measure",
    "measure_process",
    "outputs_of",
]

OnProgress = Callable[[float], None]
"""Called with the part of the work that is done, 0 to 1."""

# Finds packages where this process does, and imports edgescribe inside what is measured.
_START = (
    "import sys; from time import perf_counter as t; sys.path[:] = sys.argv[1:]; s = t(); "
    "from edgescribe.sdk.measured_process import main; main(s)"
)


QUICK = Effort()
PUBLISHED = Effort(samples=1024, seconds=60.0, warmup=32)


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What a bundle's artifact gives for texts.

    ``values``: float32 ``[texts, labels]`` for ``classify``, ``[texts, width]`` for ``embed``, ``[tokens, labels]``
    for ``tag`` with the texts' tokens one after the other (special ones included); ``lengths``: each text's tokens.
    """

    values: NDArray[np.float32]
    lengths: NDArray[np.int64]
    report: ProcessReport


class Comparison(msgspec.Struct, kw_only=True):
    """Two bundles measured in turn. Ratios are baseline over bundle: above 1 the bundle is faster.

    ``p50_ratio`` and ``p90_ratio`` are medians over the rounds; ``p90_ratio_range`` their least and largest.
    """

    bundle: list[ProcessReport]
    baseline: list[ProcessReport]
    p50_ratio: float
    p90_ratio: float
    p90_ratio_range: tuple[float, float]


def measure_process(
    bundle: str | Path,
    runtime: str | None = None,
    precision: str | None = None,
    *,
    device: str | None = None,
    threads: int = 0,
    tokens: int = 128,
    effort: Effort = QUICK,
    texts: Sequence[str] = (),
    on_progress: OnProgress | None = None,
) -> ProcessReport:
    """Measure one artifact of a bundle in a process of its own.

    Args:
        bundle: the bundle's folder.
        runtime: runtime to use; None takes what :func:`edgescribe.load` takes on this machine.
        precision: artifact to use where the runtime has several.
        device: as for :func:`edgescribe.load`: a device profile to choose the artifact by, ``cpu`` or ``npu``.
        threads: 0 takes the runtime's own choice.
        tokens: exact number of tokens of every timed call.
        effort: how many calls and seconds.
        texts: what the calls are made of; by default the tokens of the bundle's known answers.
        on_progress: told how far the timed calls are.

    Raises:
        BundleError: the bundle is damaged or lacks this artifact.
        EngineError: its engine is missing or does not do it here.
        UsageError: a number is out of range.
    """
    request = _request(bundle, runtime, precision, device, threads, tokens, effort, texts)
    return _run_process(request, on_progress)


def measure(
    bundle: str | Path,
    runtime: str | None = None,
    precision: str | None = None,
    *,
    device_name: str = "host",
    device: str | None = None,
    threads: int = 0,
    tokens: int = 128,
    effort: Effort = QUICK,
    texts: Sequence[str] = (),
    on_progress: OnProgress | None = None,
) -> Measurement:
    """As :func:`measure_process`, as the manifest keeps it.

    Args:
        device_name: the device profile that this machine stands for; ``host`` is this machine as such.
    """
    report = measure_process(
        bundle,
        runtime,
        precision,
        device=device,
        threads=threads,
        tokens=tokens,
        effort=effort,
        texts=texts,
        on_progress=on_progress,
    )
    return as_measurement(report, device_name)


def as_measurement(report: ProcessReport, device_name: str = "host") -> Measurement:
    """The manifest's form of a report."""
    from ..device_profiles.probe import probe

    return Measurement(
        device=device_name,
        machine=machine_text(probe()),
        runtime=msgspec.convert(report.effective.runtime, _field_type("runtime")),
        precision=msgspec.convert(report.precision, _field_type("precision")),
        how="measured",
        tokens=report.tokens,
        samples=report.samples,
        threads=report.effective.threads,
        p50_ms=report.percentile(50),
        p90_ms=report.percentile(90),
        p99_ms=report.percentile(99),
        throughput_per_s=report.throughput_per_s,
        load_ms=report.load_ms,
        peak_rss_mib=report.peak_rss_mib,
        disk_mib=report.disk_mib,
        ttft_ms=report.ttft_ms,
        tokens_per_s=report.tokens_per_s,
    )


def outputs_of(
    bundle: str | Path,
    texts: Iterable[str],
    runtime: str | None = None,
    precision: str | None = None,
    *,
    device: str | None = None,
    threads: int = 0,
    on_progress: OnProgress | None = None,
) -> Outputs:
    """The artifact's outputs for texts, computed one text at a time in the process that :func:`measure_process` times.

    Args:
        texts: read as a stream; kept in a temporary file on the way.

    Raises:
        BundleError: the bundle is damaged or lacks this artifact.
        EngineError: its engine is missing or does not do it here.
    """
    with tempfile.TemporaryDirectory(prefix="edgescribe-") as folder:
        request = _request(bundle, runtime, precision, device, threads, 16, Effort(samples=1, seconds=0, warmup=0), ())
        request.texts_file, request.outputs_file = f"{folder}/texts.jsonl", f"{folder}/outputs.npz"
        with Path(request.texts_file).open("wb") as file:
            for text in texts:
                file.write(msgspec.json.encode(text) + b"\n")
        report = _run_process(request, on_progress)
        with np.load(request.outputs_file, allow_pickle=False) as saved:
            return Outputs(values=saved["values"], lengths=saved["lengths"], report=report)


def compare(
    bundle: str | Path,
    baseline: str | Path,
    *,
    runtime: str | None = None,
    precision: str | None = None,
    baseline_runtime: str | None = None,
    baseline_precision: str | None = None,
    device: str | None = None,
    threads: int = 0,
    tokens: int = 128,
    effort: Effort = QUICK,
    rounds: int = 5,
    texts: Sequence[str] = (),
    on_progress: OnProgress | None = None,
) -> Comparison:
    """Measure two bundles in turn, each round both in fresh processes and in changing order.

    What else the machine does falls on both alike, so ratios hold where single times do not.
    ``effort`` is shared out over the rounds.

    Raises:
        UsageError: fewer than one round.
        BundleError, EngineError: as :func:`measure_process`, of either bundle.
    """
    if rounds < 1:
        raise UsageError(f"rounds is {rounds}; compare in at least 1 round")
    share = Effort(math.ceil(effort.samples / rounds), effort.seconds / rounds, effort.warmup)
    sides: dict[str, list[ProcessReport]] = {"bundle": [], "baseline": []}
    chosen = {"bundle": (bundle, runtime, precision), "baseline": (baseline, baseline_runtime, baseline_precision)}
    done = 0

    def part(fraction: float) -> None:
        if on_progress:
            on_progress((done + fraction) / (2 * rounds))

    for turn in range(rounds):
        for side in ("bundle", "baseline") if turn % 2 == 0 else ("baseline", "bundle"):
            folder, engine, numbers = chosen[side]
            sides[side].append(
                measure_process(
                    folder,
                    engine,
                    numbers,
                    device=device,
                    threads=threads,
                    tokens=tokens,
                    effort=share,
                    texts=texts,
                    on_progress=part,
                )
            )
            done += 1
    p50, p90 = (
        [old.percentile(at) / new.percentile(at) for new, old in zip(sides["bundle"], sides["baseline"], strict=True)]
        for at in (50, 90)
    )
    return Comparison(
        bundle=sides["bundle"],
        baseline=sides["baseline"],
        p50_ratio=float(np.median(p50)),
        p90_ratio=float(np.median(p90)),
        p90_ratio_range=(min(p90), max(p90)),
    )


def machine_text(machine: Machine) -> str:
    """What a measurement calls the machine: instruction set, the board's or computer's name, and at last its cores.

    The end is what :func:`~edgescribe.sdk.load.by_measurement` knows machines of a kind by.
    """
    cores = "; ".join(f"{cluster.count} x {cluster.core}" for cluster in machine.clusters.values())
    return ", ".join(part for part in (machine.isa, machine.model, cores) if part)


def _field_type(name: str) -> Any:
    return {field.name: field.type for field in msgspec.structs.fields(Measurement)}[name]


def _request(
    bundle: str | Path,
    runtime: str | None,
    precision: str | None,
    device: str | None,
    threads: int,
    tokens: int,
    effort: Effort,
    texts: Sequence[str],
) -> Request:
    for name, value, least in (
        ("tokens", tokens, 2),
        ("threads", threads, 0),
        ("samples", effort.samples, 1),
        ("seconds", effort.seconds, 0),
        ("warmup", effort.warmup, 0),
    ):
        if not least <= value < 10**6:
            raise UsageError(f"{name} is {value}; give {least} or more (under a million)")
    task = task_of(bundle)
    return Request(
        bundle=str(Path(bundle).resolve()),
        runtime=runtime,
        precision=precision,
        device=device,
        threads=threads,
        tokens=tokens,
        effort=effort,
        texts=list(texts),
        writes=task == "generate",
        summarizes=task == "summarize",
    )


def _run_process(request: Request, on_progress: OnProgress | None) -> ProcessReport:
    with tempfile.TemporaryFile() as complaints:
        request.spawned_ns = time.monotonic_ns()
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", _START, *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
        )
        with _ended(process) as (requests, answers):
            _send(requests, msgspec.json.encode(request))
            report = _read_answer(answers, on_progress)
        if report is None:
            complaints.seek(0)
            last = complaints.read().decode(errors="replace").strip().splitlines()[-3:]
            raise EngineError(
                f"the process that measures {request.bundle} on {request.runtime or 'the default runtime'} ended with "
                f"{_ending(process.returncode)} and no result: {' | '.join(last) or 'it said nothing'}"
            )
        return report


@contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """The process's stdin and stdout; waits for it at the end, and kills it first when we are interrupted."""
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("the measured process was started without pipes")
    try:
        yield process.stdin, process.stdout
    except BaseException:
        process.kill()
        raise
    finally:
        process.stdout.close()
        process.wait()


def _send(pipe: IO[bytes], content: bytes) -> None:
    with suppress(BrokenPipeError):  # it ended before it read; its exit status tells more
        pipe.write(content)
        pipe.close()


def _read_answer(lines: IO[bytes], on_progress: OnProgress | None) -> ProcessReport | None:
    """Lines of JSON: ``{"progress": 0.5}`` any number of times, then ``{"report": …}`` or ``{"error": …}``."""
    for line in lines:
        message = msgspec.json.decode(line)
        if "progress" in message and on_progress:
            on_progress(message["progress"])
        if "report" in message:
            return msgspec.convert(message["report"], ProcessReport)
        if "error" in message:
            raise _rebuilt(**message["error"])
    return None


def _rebuilt(kind: str, message: str) -> EdgescribeError:
    """The error that the process met, as its own class again, message and all."""
    found = getattr(errors, kind, EngineError)
    error: EdgescribeError = found.__new__(found)
    Exception.__init__(error, message)
    return error


def _ending(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"exit status {status}"
