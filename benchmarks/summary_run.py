"""Runs summarisers in turn, each in processes of its own, and collects what they measured.

All contenders of a student stay loaded for the timed rounds and take turns in another order each round, as in
``interleaved_run.py``. Memory is taken in fresh processes, summaries of the test split at the end.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from interleaved_run import SEED, SETTLE_S, Process
from summary_contenders import SummaryContender
from writer_contenders import LeftOut, brief

SCRIPT = Path(__file__).with_name("summary_process.py")
WARMUP_TOKENS = 8


@dataclass(frozen=True)
class SummaryEffort:
    """``rounds`` of ``times`` summaries of exactly ``new_tokens`` tokens for each contender; ``memory_starts`` fresh
    processes for each, which write one."""

    rounds: int = 10
    times: int = 2
    new_tokens: int = 64
    memory_starts: int = 3


QUICK = SummaryEffort(rounds=2, times=1, memory_starts=1)


@dataclass
class SummaryFigures:
    """What one contender gave: milliseconds of each summary by round, of its encoder and first token too where they
    are told; peak memory by fresh process; the tokens of the test texts' summaries."""

    engine: str = ""
    total_ms: list[list[float]] = field(default_factory=list)
    first_ms: list[list[float]] = field(default_factory=list)
    peak_rss_mib: list[float] = field(default_factory=list)
    summaries: list[list[int]] = field(default_factory=list)

    def speeds(self, tokens: int) -> list[float]:
        """Tokens a second by round, reading the source included."""
        return [1000 * tokens / median(times) for times in self.total_ms]

    @property
    def peak_mb(self) -> float:
        """The largest peak of resident memory, in megabytes (10^6 bytes)."""
        return max(self.peak_rss_mib) * 2**20 / 1e6


Progress = Callable[[str, float], None]


def run_summarisers(
    contenders: Sequence[SummaryContender],
    source: Sequence[int],
    tests: Sequence[Sequence[int]],
    most: int,
    effort: SummaryEffort,
    base: Mapping[str, Any],
    progress: Progress = lambda stage, part: None,
) -> tuple[dict[str, SummaryFigures], list[LeftOut]]:
    """Figures of each contender of one student by name, and those that could not be opened.

    Args:
        source: tokens of the text that is timed.
        tests: tokens of the texts that are summarised for quality, in ``most`` tokens at most; may be empty.
        base: what every process is started with beside its contender's own.

    Raises:
        RuntimeError: a contender's process ended before its time; the message holds what it last said.
    """
    spec = {**base, "source": list(source)}
    found: dict[str, SummaryFigures] = {}
    left_out: list[LeftOut] = []
    there: list[SummaryContender] = []

    def started(contender: SummaryContender) -> Process:
        return Process(contender.name, SCRIPT, {**spec, **contender.process})

    with ExitStack() as stack:
        processes: list[Process] = []
        for number, contender in enumerate(contenders):
            progress("loading", number / len(contenders))
            try:
                process = stack.enter_context(started(contender))
            except (RuntimeError, OSError) as error:
                left_out.append(LeftOut(contender.name, brief(error)))
                continue
            found[contender.name] = SummaryFigures(engine=process.engine)
            processes.append(process)
            there.append(contender)
        order = random.Random(SEED)
        for turn in range(effort.rounds):
            for number, process in enumerate(order.sample(processes, len(processes))):
                progress("speed", (turn + number / len(processes)) / effort.rounds)
                time.sleep(SETTLE_S)
                process.ask({"write": WARMUP_TOKENS, "times": 1})
                runs = process.ask({"write": effort.new_tokens, "times": effort.times})["runs"]
                figures = found[process.name]
                figures.total_ms.append([one["total_ms"] for one in runs])
                figures.first_ms.append([one["first_ms"] for one in runs if one["first_ms"] is not None])
        for number, process in enumerate(processes):
            progress("summaries", number / len(processes))
            if tests:
                asked = {"summaries": [list(ids) for ids in tests], "most": most}
                found[process.name].summaries = process.ask(asked)["tokens"]
    for turn in range(effort.memory_starts):
        for number, contender in enumerate(there):
            progress("memory", (turn + number / len(there)) / effort.memory_starts)
            with started(contender) as process:
                process.ask({"write": effort.new_tokens, "times": 1})
                found[contender.name].peak_rss_mib.append(process.ask({"peak": True})["peak_rss_mib"])
    return found, left_out


def transcript_peaks(bundle: Path, runtime: str, transcripts: Sequence[Path], threads: int) -> list[float]:
    """Peak memory in MiB of a fresh process for each transcript, summarised whole by a bundle of ours."""
    peaks = []
    spec = {"kind": "long", "path": str(bundle), "runtime": runtime, "threads": threads}
    for path in transcripts:
        with Process(f"long transcripts, {runtime}", SCRIPT, spec) as process:
            process.ask({"transcript": str(path)})
            peaks.append(process.ask({"peak": True})["peak_rss_mib"])
    return peaks
