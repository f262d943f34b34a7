"""Runs writers in turn, each in processes of its own, and collects what they measured.

All contenders stay loaded for the timed rounds and take turns in another order each round, as in
``interleaved_run.py``. Start-up time and memory are taken in fresh processes, also in turn; what is foreseen of texts,
where load does not matter, at the end.
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

from edgescribe.sdk.measured_process import percentile
from interleaved_run import SEED, SETTLE_S, Process
from writer_contenders import LeftOut, WriterContender, brief

SCRIPT = Path(__file__).with_name("writer_process.py")
WARMUP_TOKENS = 16
GROWTH_TOKENS = 24


@dataclass(frozen=True)
class WriterEffort:
    """How much is measured.

    ``rounds`` of ``times`` texts of ``new_tokens`` tokens for each contender; ``starts`` fresh processes for each, of
    which the first ``memory_starts`` write one text.
    """

    rounds: int = 10
    times: int = 2
    new_tokens: int = 128
    starts: int = 5
    memory_starts: int = 3


QUICK = WriterEffort(rounds=2, times=1, starts=2, memory_starts=1)


@dataclass(frozen=True)
class Conversation:
    """A request: its messages for our writers, and its tokens in the unpruned student's vocabulary for the peers."""

    messages: list[dict[str, str]]
    ids: list[int]


@dataclass(frozen=True)
class WriterTexts:
    """``prompt``: what all go on from, of ``tokens`` tokens; ``conversations``: what is rewritten; ``windows``: the
    file of texts to foresee; ``reference``: the file of the float32 student's log-probabilities, or None;
    ``lengths``: of the context at which growth is measured."""

    prompt: str
    tokens: int
    context: int
    conversations: Sequence[Conversation]
    windows: Path
    reference: Path | None
    lengths: Sequence[int] = ()


@dataclass
class Rewriting:
    """Of one contender, by conversation: ``seconds`` behind the first token, ``tokens``; and guessed tokens in all."""

    seconds: list[float] = field(default_factory=list)
    tokens: list[list[int]] = field(default_factory=list)
    proposed: int = 0
    accepted: int = 0

    @property
    def tokens_per_s(self) -> float:
        """Tokens a second behind each text's first; 0 where none was written."""
        later = sum(max(0, len(tokens) - 1) for tokens in self.tokens)
        return later / sum(self.seconds) if later and sum(self.seconds) else 0.0

    @property
    def accepted_share(self) -> float:
        """Share of the written tokens that were guessed rightly."""
        written = sum(map(len, self.tokens))
        return self.accepted / written if written else 0.0


@dataclass
class WriterFigures:
    """What one contender gave: times by round in milliseconds, by fresh process ``cold_ms`` and ``peak_rss_mib``;
    ``plain`` and ``lookup`` rewriting; ``nats`` over all scored tokens, ``kl`` and ``agreed`` against float32;
    Python's share by round; growth points."""

    engine: str = ""
    prefill_ms: list[list[float]] = field(default_factory=list)
    steps_ms: list[list[float]] = field(default_factory=list)
    cold_ms: list[float] = field(default_factory=list)
    peak_rss_mib: list[float] = field(default_factory=list)
    python_share: list[float] = field(default_factory=list)
    plain: Rewriting = field(default_factory=Rewriting)
    lookup: Rewriting = field(default_factory=Rewriting)
    nats: float = float("nan")
    kl: float | None = None
    agreed: float | None = None
    growth: list[dict[str, float]] = field(default_factory=list)

    @property
    def speeds(self) -> list[float]:
        """Tokens a second while decoding, by round."""
        return [1000 * len(steps) / sum(steps) for steps in self.steps_ms]

    @property
    def prefills(self) -> list[float]:
        """Median prefill of each round, in milliseconds."""
        return [median(times) for times in self.prefill_ms]

    @property
    def step_p50(self) -> float:
        """Median over the rounds of each round's median step, in milliseconds."""
        return median(percentile(steps, 50) for steps in self.steps_ms)


Progress = Callable[[str, float], None]


def run_writers(
    contenders: Sequence[WriterContender],
    texts: WriterTexts,
    effort: WriterEffort,
    base: Mapping[str, Any],
    progress: Progress = lambda stage, part: None,
) -> tuple[dict[str, WriterFigures], list[LeftOut]]:
    """Figures of each contender by name, and those that could not be opened.

    Args:
        base: what every process is started with beside its contender's own: ``threads``, ``spinning``.
        progress: told the stage and the part of it that is done.

    Raises:
        RuntimeError: a contender's process ended before its time; the message holds what it last said.
    """
    spec = {**base, "context": texts.context, "tokens": texts.tokens, "text": texts.prompt}
    found: dict[str, WriterFigures] = {}
    left_out: list[LeftOut] = []
    there: list[WriterContender] = []

    def started(contender: WriterContender, **changes: Any) -> Process:
        return Process(contender.name, SCRIPT, {**spec, **contender.process, **changes}, str(contender.interpreter))

    with ExitStack() as stack:
        processes: list[tuple[WriterContender, Process]] = []
        for number, contender in enumerate(contenders):
            progress("loading", number / len(contenders))
            try:
                process = stack.enter_context(started(contender))
            except (RuntimeError, OSError) as error:
                left_out.append(LeftOut(contender.name, brief(error)))
                continue
            found[contender.name] = WriterFigures(engine=process.engine)
            processes.append((contender, process))
            there.append(contender)
        order = random.Random(SEED)
        for turn in range(effort.rounds):
            for number, (contender, process) in enumerate(order.sample(processes, len(processes))):
                progress("decoding", (turn + number / len(processes)) / effort.rounds)
                _time(contender, process, effort, found[contender.name])
        for turn, conversation in enumerate(texts.conversations):
            for number, (contender, process) in enumerate(order.sample(processes, len(processes))):
                progress("rewriting", (turn + number / len(processes)) / len(texts.conversations))
                _rewrite(contender, process, conversation, effort.new_tokens, found[contender.name])
    for turn in range(effort.starts):
        for number, contender in enumerate(there):
            progress("start-up and memory", (turn + number / len(there)) / effort.starts)
            with started(contender) as process:
                found[contender.name].cold_ms.append(process.cold_ms)
                if turn < effort.memory_starts:
                    process.ask({"write": effort.new_tokens, "times": 1})
                    found[contender.name].peak_rss_mib.append(process.ask({"peak": True})["peak_rss_mib"])
    for number, contender in enumerate(there):
        figures = found[contender.name]
        progress("quality", number / len(there))
        with started(contender) as process:
            score = process.ask({"score": str(texts.windows), "reference": texts.reference and str(texts.reference)})
            figures.nats, figures.kl, figures.agreed = score["nats"], score["kl"], score["agreed"]
        if texts.lengths:
            try:
                with started(contender, context=max(texts.lengths) + GROWTH_TOKENS) as process:
                    figures.growth = process.ask({"grow": list(texts.lengths), "write": GROWTH_TOKENS})["points"]
            except RuntimeError as error:
                left_out.append(LeftOut(f"{contender.name}, long context", brief(error)))
    return found, left_out


def _time(contender: WriterContender, process: Process, effort: WriterEffort, figures: WriterFigures) -> None:
    time.sleep(SETTLE_S)
    process.ask({"write": WARMUP_TOKENS, "times": 1})
    turns = process.ask({"write": effort.new_tokens, "times": effort.times})["turns"]
    figures.prefill_ms.append([turn["prefill_ms"] for turn in turns])
    figures.steps_ms.append([step for turn in turns for step in turn["steps_ms"]])
    if contender.side == "ours":
        share = process.ask({"share": effort.new_tokens})["python_share"]
        if share is not None:
            figures.python_share.append(share)


def _rewrite(
    contender: WriterContender, process: Process, conversation: Conversation, tokens: int, figures: WriterFigures
) -> None:
    time.sleep(SETTLE_S)
    if contender.side == "peer":
        (turn,) = process.ask({"prompt": conversation.ids, "write": tokens})["turns"]
        figures.plain.seconds.append(sum(turn["steps_ms"]) / 1000)
        figures.plain.tokens.append(turn["tokens"])
        return
    for lookup, kept in ((False, figures.plain), (True, figures.lookup)):
        answer = process.ask({"rewrite": conversation.messages, "write": tokens, "lookup": lookup})
        kept.seconds.append(answer["seconds"])
        kept.tokens.append(answer["tokens"])
        kept.proposed += answer["proposed"]
        kept.accepted += answer["accepted"]
