"""One summary from its source's tokens to its end: what :mod:`edgescribe.sdk.summarizer` runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass

from .beam_search import EarlyStopping, Hypothesis, Search, search
from .generation import FinishReason, GenerationRun, Plan, TokenConstraint
from .ngram_blocking import Blocking
from .prompt_lookup import LookupStatistics
from .sampling import Sampler
from .session_turns import Turn
from .source_turns import SourceTurns
from .stop_strings import StopStrings
from .text_codec import TextCodec, TextStream


@dataclass(frozen=True, slots=True)
class SummaryTimings:
    """How long a summary took, in seconds from the call on.

    Attributes:
        read: reading the source (the encoder, and keys and values for every layer of the decoder).
        first_token: until the first token was chosen, reading and waiting for other texts included; with beams, which
            tell nothing before their end, until that.
        total: until the end.
    """

    read: float
    first_token: float
    total: float


@dataclass(frozen=True, slots=True)
class Summary:
    """A summary.

    Attributes:
        text: what was written, without the stop string.
        tokens: its tokens, without those that start it and the one that ended it.
        finish_reason: ``stop``: the summariser ended it, there was nothing to summarise, or a stop string or the end of
            what a constraint allows came; ``length``: ``max_new_tokens`` or the end of the context was reached;
            ``cancelled``.
        stop: the stop string that came, or None.
        source_tokens: tokens of the source that were read, special ones and the bundle's prefix included; 0 for a text
            of blanks, which is not read at all.
        truncated: tokens of the source were left out, as ``truncate`` asked for.
        num_beams: summaries that were written side by side.
        score: of a beam search, the sum of log-probabilities over a power of the length; None without.
        seed: with which it was drawn; None where it was not.
        timings: how long it took.
        lookup: what prompt lookup gave; None where it was off.
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    stop: str | None
    source_tokens: int
    truncated: bool
    num_beams: int
    score: float | None
    seed: int | None
    timings: SummaryTimings
    lookup: LookupStatistics | None

    @property
    def tokens_per_s(self) -> float:
        """Tokens written a second, reading the source included."""
        return len(self.tokens) / self.timings.total if self.timings.total > 0 else 0.0


@dataclass(slots=True)
class SummaryPlan:
    """What is to be summarised, and how.

    ``source``: all tokens to be read; none: there is nothing to summarise. ``start``: tokens that start the summary.
    Of one beam alone: ``sampler``, ``constraint`` and ``lookup``, as of :class:`~edgescribe.sdk.generation.Plan`.
    """

    source: tuple[int, ...]
    truncated: bool
    start: tuple[int, ...]
    end_tokens: frozenset[int]
    max_new_tokens: int
    min_new_tokens: int
    num_beams: int
    length_penalty: float
    early_stopping: EarlyStopping
    no_repeat_ngram_size: int
    sampler: Sampler
    stops: StopStrings
    constraint: TokenConstraint | None = None
    lookup: bool | None = None


class SummaryRun:
    """Writes one summary. :meth:`pieces` may be run once; ``result`` stands after its end.

    Args:
        turns: the session.
        codec: its tokens.
        plan: what is to be summarised.
    """

    def __init__(self, turns: SourceTurns, codec: TextCodec, plan: SummaryPlan) -> None:
        self.result: Summary | None = None
        self._turns, self._codec, self._plan = turns, codec, plan
        self._started = time.perf_counter()
        self._read = 0.0
        # Every token but the last has to fit the cache behind those that start the summary.
        self._room = min(plan.max_new_tokens, turns.session.context - len(plan.start) + 1)
        self._found: Hypothesis | None = None
        self._pieces: list[str] = []
        self._writing = self._one_beam() if plan.num_beams == 1 else None
        self.cancelled = threading.Event() if self._writing is None else self._writing.cancelled
        self._turn = Turn(turns, self.cancelled)

    def pieces(self) -> Generator[str, None, None]:
        """The text in pieces of whole characters; a piece is never empty. With beams it is one."""
        try:
            if not self._plan.source:
                return
            if self._writing is not None:
                yield from self._writing.pieces()
            else:
                self._found = self._search()
                yield from self._beams_text()
        finally:
            self.end()

    def end(self) -> None:
        """Give the session free and put the result together, wherever the text stands."""
        if self.result is None:
            self._turn.release()
            if self._writing is None or not self._plan.source:
                self._finish_search()
            else:
                self._writing.end()
                self._finish_writing(self._writing)

    def _blocking(self) -> Blocking:
        plan = self._plan
        return Blocking(
            plan.start, plan.no_repeat_ngram_size, plan.end_tokens, plan.min_new_tokens, plan.constraint
        )

    # One beam
    def _one_beam(self) -> GenerationRun:
        plan = self._plan
        blocks = plan.no_repeat_ngram_size > 0 or plan.min_new_tokens > 0
        return GenerationRun(
            self._turns,
            Plan(
                prompt=list(plan.start),
                max_new_tokens=plan.max_new_tokens,
                end_tokens=plan.end_tokens,
                sampler=plan.sampler,
                stops=plan.stops,
                text=TextStream(self._codec),
                constraint=self._blocking() if blocks else plan.constraint,
                lookup=plan.lookup,
                before=self._read_source,
                source=plan.source,
            ),
        )

    def _read_source(self) -> None:
        self._read = self._turns.read(self._plan.source)

    def _finish_writing(self, writing: GenerationRun) -> None:
        found = writing.result
        if found is None:
            return
        self.result = self._summary(
            found.text,
            found.tokens,
            found.finish_reason,
            found.stop,
            first_token=found.timings.first_token,
            lookup=found.lookup,
        )

    # Several beams
    def _search(self) -> Hypothesis | None:
        plan = self._plan
        if self._room < 1:
            return Hypothesis((), 0.0, False)
        asked = Search(
            start=plan.start,
            end_tokens=plan.end_tokens,
            beams=plan.num_beams,
            max_new_tokens=self._room,
            length_penalty=plan.length_penalty,
            early_stopping=plan.early_stopping,
            blocking=self._blocking(),
        )
        with self._turn.held() as turns:
            if turns is None:
                return None
            self._read_source()
            found = search(self._turns.session, self._turns.beams, asked, self._goes_on)
            turns.forget(0)
        self._turn.release()
        return found[0] if found else None

    def _goes_on(self) -> bool:
        self._turns.check_open()
        return not self.cancelled.is_set()

    def _beams_text(self) -> Generator[str, None, None]:
        if self._found is None:
            return
        plan, stream = self._plan, TextStream(self._codec)
        kept: list[int] = []
        text = ""
        for token in self._found.tokens:
            kept.append(token)
            text += plan.stops.feed(stream.feed(token))
            if plan.stops.found is not None:
                break
        else:
            text += plan.stops.rest()
        self._found = Hypothesis(
            tuple(kept), self._found.score, self._found.ended or plan.stops.found is not None
        )
        if text:
            self._pieces.append(text)
            yield text

    def _finish_search(self) -> None:
        found = self._found
        reason: FinishReason = "cancelled"
        if not self._plan.source and not self.cancelled.is_set():
            reason = "stop"
        elif found is not None:
            reason = "stop" if found.ended else "length"
        self.result = self._summary(
            "".join(self._pieces),
            () if found is None else found.tokens,
            reason,
            self._plan.stops.found,
            score=None if found is None else found.score,
        )

    def _summary(
        self,
        text: str,
        tokens: Sequence[int],
        reason: FinishReason,
        stop: str | None,
        *,
        first_token: float | None = None,
        score: float | None = None,
        lookup: LookupStatistics | None = None,
    ) -> Summary:
        plan, total = self._plan, time.perf_counter() - self._started
        return Summary(
            text=text,
            tokens=tuple(tokens),
            finish_reason=reason,
            stop=stop,
            source_tokens=len(plan.source),
            truncated=plan.truncated,
            num_beams=plan.num_beams,
            score=score,
            seed=plan.sampler.seed,
            timings=SummaryTimings(self._read, total if first_token is None else first_token, total),
            lookup=lookup,
        )
