"""Runs contenders in turn, each in processes of its own, and collects what they measured.

All contenders stay loaded for the whole run and take turns by short bursts, in another order each round, so that
whatever else the machine does falls on all alike. While one works the others wait for a line on stdin. Start-up time
and memory are taken afterwards in fresh processes, also in turn.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any

from contenders import Contender
from edgescribe.sdk.measured_process import percentile

PROCESS = Path(__file__).with_name("contender_process.py")
SETTLE_S = 0.05
"""Pause before a burst, in which the last contender's waiting threads stop spinning."""
SEED = 0


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    ``rounds`` bursts of at least ``calls`` calls and ``seconds`` seconds for each contender, each after ``warmup``
    calls; ``starts`` fresh processes for each, of which the first ``memory_starts`` classify ``memory_texts`` texts.
    """

    rounds: int = 20
    calls: int = 52
    seconds: float = 3.0
    warmup: int = 8
    starts: int = 7
    memory_starts: int = 3
    memory_texts: int = 100


QUICK = Effort(rounds=5, calls=16, seconds=0.3, starts=5, memory_starts=1)


@dataclass(frozen=True)
class Texts:
    """``timed``: texts whose tokens, cut or repeated to ``tokens``, the timed calls are made of; ``test``: all of the
    test split's texts that are classified for accuracy, the first of which start processes and fill memory."""

    timed: Sequence[str]
    tokens: int
    test: Sequence[str]


@dataclass
class Figures:
    """What one contender gave: ``latencies_ms`` by round, ``cold_ms`` and ``peak_rss_mib`` by fresh process,
    ``labels`` for the test texts, and the engine in words."""

    engine: str = ""
    latencies_ms: list[list[float]] = field(default_factory=list)
    cold_ms: list[float] = field(default_factory=list)
    peak_rss_mib: list[float] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)

    def by_round(self, percent: float) -> list[float]:
        """A percentile of each round's latencies, in milliseconds."""
        return [percentile(burst, percent) for burst in self.latencies_ms]

    def latency(self, percent: float) -> float:
        """Median over the rounds of a percentile of the latencies, in milliseconds."""
        return median(self.by_round(percent))

    @property
    def least_ms(self) -> float:
        """The fastest call."""
        return min(map(min, self.latencies_ms))


class Process:
    """One contender's process, ready once its first text is answered.

    Args:
        name: the contender's.
        script: what it runs.
        spec: what the script is started with; ``threads`` is among it.
        interpreter: by default this process's own.

    Attributes:
        cold_ms: from just before it was started to the answer to the first text.
        engine: what runs it, in words.
    """

    def __init__(self, name: str, script: Path, spec: Mapping[str, Any], interpreter: str = sys.executable) -> None:
        self.name = name
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 (closed in close)
        spawned_ns = time.monotonic_ns()
        self._process = subprocess.Popen(
            [interpreter, "-P", str(script), json.dumps(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            text=True,
            encoding="utf-8",
            env=_environment(int(spec["threads"])),
        )
        try:
            ready = self._answer()
        except RuntimeError:
            self.close()
            raise
        self.cold_ms = (ready["answered_ns"] - spawned_ns) / 1e6
        self.engine = str(ready["engine"])

    def ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Send one line and wait for the answer.

        Raises:
            RuntimeError: the process ended instead.
        """
        if self._process.stdin is None:
            raise RuntimeError("the process was started without pipes")
        with suppress(BrokenPipeError):  # it ended; what it said before is more telling
            print(json.dumps(message), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        line = "" if self._process.stdout is None else self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._complaints.seek(0)
            last = self._complaints.read().decode(errors="replace").strip().splitlines()[-3:]
            raise RuntimeError(f"{self.name} ended with status {self._process.returncode}: {' | '.join(last)}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._complaints.close()

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self._process.kill()
        self.close()


def run(
    contenders: Sequence[Contender],
    texts: Texts,
    effort: Effort,
    progress: Callable[[str, float], None] = lambda stage, part: None,
) -> dict[str, Figures]:
    """Figures of each contender by name. ``progress`` is told the stage and the part of it that is done.

    Raises:
        RuntimeError: a contender's process ended before its time; the message holds what it last said.
    """
    found = {contender.name: Figures() for contender in contenders}
    with ExitStack() as stack:
        processes = []
        for number, contender in enumerate(contenders):
            progress("loading", number / len(contenders))
            process = stack.enter_context(_started(contender, texts.test[0]))
            process.ask({"texts": list(texts.timed), "tokens": texts.tokens})
            found[contender.name].engine = process.engine
            processes.append(process)
        order = random.Random(SEED)
        for turn in range(effort.rounds):
            for number, process in enumerate(order.sample(processes, len(processes))):
                progress("latency", (turn + number / len(processes)) / effort.rounds)
                time.sleep(SETTLE_S)
                burst = {"calls": effort.calls, "seconds": effort.seconds, "warmup": effort.warmup}
                found[process.name].latencies_ms.append(process.ask(burst)["latencies_ms"])
        for number, process in enumerate(processes):
            progress("accuracy", number / len(processes))
            found[process.name].labels = process.ask({"classify": list(texts.test)})["labels"]
    for turn in range(effort.starts):
        for number, contender in enumerate(contenders):
            progress("start-up and memory", (turn + number / len(contenders)) / effort.starts)
            with _started(contender, texts.test[0]) as process:
                found[contender.name].cold_ms.append(process.cold_ms)
                if turn < effort.memory_starts:
                    answer = process.ask({"classify": list(texts.test[: effort.memory_texts])})
                    found[contender.name].peak_rss_mib.append(answer["peak_rss_mib"])
    return found


def _started(contender: Contender, text: str) -> Process:
    return Process(contender.name, PROCESS, {**contender.process, "text": text})


def _environment(threads: int) -> dict[str, str]:
    """No telemetry, no network, no warnings; and OpenMP's own count of threads where an engine asks it first."""
    return os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "ORT_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONWARNINGS": "ignore",
    }
