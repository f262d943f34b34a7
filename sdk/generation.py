"""One text from prompt to end, token by token: what :mod:`edgescribe.sdk.writer` runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..runtimes.decoder_contract import CacheState
from .prompt_lookup import LookupStatistics, PromptLookup
from .sampling import Sampler
from .session_turns import SessionTurns, Turn
from .stop_strings import StopStrings
from .text_codec import TextStream

FinishReason = Literal["stop", "length", "cancelled"]
CHUNK = 128
"""Tokens of one run of prefill where the session does not tell; a prompt can be cancelled between runs."""


@dataclass(frozen=True, slots=True)
class Timings:
    """How long it took, in seconds from the call on.

    Attributes:
        first_token: until the first token was chosen (time to first token), waiting for other texts included.
        total: until the end.
        tokens_per_s: tokens a second after the first; 0 where there was no other.
    """

    first_token: float
    total: float
    tokens_per_s: float


@dataclass(frozen=True, slots=True)
class Generation:
    """A written text.

    Attributes:
        text: what was written, without the prompt and without the stop string.
        tokens: its tokens, without the one that ended it.
        finish_reason: ``stop``: the writer ended it, or a stop string or the end of what a constraint allows came;
            ``length``: ``max_new_tokens`` or the end of the context was reached; ``cancelled``.
        stop: the stop string that came, or None.
        prompt_tokens: tokens of the prompt.
        reused_tokens: tokens of the prompt that were in a cache already.
        seed: with which it was drawn; None where it was greedy.
        timings: how long it took.
        lookup: what prompt lookup gave; None where it was off.
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    stop: str | None
    prompt_tokens: int
    reused_tokens: int
    seed: int | None
    timings: Timings
    lookup: LookupStatistics | None


class TokenConstraint(Protocol):
    """What tokens may come next."""

    def mask(self, logits: NDArray[np.float32]) -> None:
        """Put the logits of tokens that may not come next to minus infinity."""
        ...

    def accept(self, token: int) -> bool:
        """Take a token in; whether the text must end with it."""
        ...


class PrefixStore(Protocol):
    """Where caches of prompts' beginnings are kept."""

    def find(self, tokens: Sequence[int], lengths: Sequence[int]) -> CacheState | None:
        """The cache of the longest kept beginning of ``tokens`` whose length is among ``lengths``."""
        ...

    def keep(self, state: CacheState) -> None:
        """Keep a cache."""
        ...


@dataclass(slots=True)
class Plan:
    """What is to be written, and with what.

    ``lookup``: whether to guess by prompt lookup; None does where the session verifies alike.
    ``shared``: tokens at the beginning of ``prompt`` that other prompts have too (a system prompt); 0 for none.
    ``any_reuse``: whether tokens may be reused that were computed in other runs than a new session would take.
    ``before``: what is done with the session before the prompt is brought in (reading a source text).
    ``source``: tokens in front of the prompt that prompt lookup may copy from too, and that the cache does not hold.
    """

    prompt: list[int]
    max_new_tokens: int
    end_tokens: frozenset[int]
    sampler: Sampler
    stops: StopStrings
    text: TextStream
    constraint: TokenConstraint | None = None
    lookup: bool | None = None
    prefixes: PrefixStore | None = None
    shared: int = 0
    any_reuse: bool = False
    before: Callable[[], None] | None = None
    source: Sequence[int] = ()


class GenerationRun:
    """Writes one text. :meth:`pieces` may be run once; ``result`` stands after its end.

    Args:
        turns: the session.
        plan: what is to be written.

    Raises:
        InputError: the prompt has no token, or does not fit.
    """

    def __init__(self, turns: SessionTurns, plan: Plan) -> None:
        context = turns.session.context
        if not plan.prompt:
            raise InputError("the prompt has no token; give a text to go on from")
        if len(plan.prompt) > context:
            raise InputError(
                f"the prompt has {len(plan.prompt):,} tokens, and the context holds {context:,}: shorten it by "
                f"{len(plan.prompt) - context:,} tokens or more (what is to be written needs room too), or load the "
                "bundle with a larger context if it has one"
            )
        self.cancelled = threading.Event()
        self.result: Generation | None = None
        self._turns, self._plan = turns, plan
        self._turn = Turn(turns, self.cancelled)
        # The last token that is written is never put into the cache.
        self._room = min(plan.max_new_tokens, context - len(plan.prompt) + 1)
        self._tokens: list[int] = []
        self._pieces: list[str] = []
        self._finish: FinishReason | None = None
        self._reused = 0
        self._fresh: CacheState | None = None
        self._lookup: PromptLookup | None = None
        self._started = time.perf_counter()
        self._first: float | None = None

    def pieces(self) -> Generator[str, None, None]:
        """The text in pieces of whole characters; a piece is never empty."""
        try:
            if self._room < 1:
                self._finish = "length"
            else:
                logits = self._prefill()
                if logits is not None:
                    yield from self._write(logits)
            if self._finish in ("length", "stop") and self._plan.stops.found is None:
                rest = self._plan.stops.rest()
                if rest:
                    self._pieces.append(rest)
                    yield rest
        finally:
            self.end()

    def end(self) -> None:
        """Give the session free and put the result together, wherever the text stands."""
        if self.result is None:
            self._turn.release()
            self._finished()

    def _write(self, logits: NDArray[np.float32]) -> Generator[str, None, None]:
        turn, lookup = self._turn, self._lookup
        row = np.empty_like(logits)  # of each step, which is through with it before the next
        rows: NDArray[np.float32] = logits[None]
        guess: list[int] = []
        while True:
            text, written, accepted = self._choose(rows, guess)
            if lookup is not None:
                lookup.written(written, len(guess), accepted)
            if self._first is None:
                self._first = time.perf_counter()
            if guess and accepted < len(guess):
                with turn.held() as turns:
                    if turns is not None:
                        turns.forget(len(turns.tokens) - len(guess) + accepted)
            if text:
                self._pieces.append(text)
                yield text
            if self._finish is not None:
                return
            guess = self._guess()
            with turn.held() as turns:
                if turns is None:
                    self._finish = "cancelled"
                    return
                fed = [self._tokens[-1], *guess]
                rows = turns.session.verify(fed) if guess else turns.session.step(fed[0], row)[None]
                turns.tokens.extend(fed)

    def _choose(self, rows: NDArray[np.float32], guess: list[int]) -> tuple[str, list[int], int]:
        """Choose tokens from one run's logits, as far as the guess that they stand on was right.

        Gives the text that may go out, the tokens written, and how many of the guess are among them.
        """
        plan = self._plan
        written: list[int] = []
        text = ""
        accepted = 0
        for place, row in enumerate(rows):
            if plan.constraint is not None:
                plan.constraint.mask(row)
            token = plan.sampler.choose(row)
            if token in plan.end_tokens:
                self._finish = "stop"
                break
            self._tokens.append(token)
            written.append(token)
            text += plan.stops.feed(plan.text.feed(token))
            if plan.stops.found is not None or (plan.constraint is not None and plan.constraint.accept(token)):
                self._finish = "stop"
                break
            if len(self._tokens) >= self._room:
                self._finish = "length"
                break
            if place == len(guess) or token != guess[place]:
                break
            accepted += 1
        return text, written, accepted

    def _guess(self) -> list[int]:
        if self._lookup is None:
            return []
        # One token of the room is always the model's own.
        return self._lookup.propose(self._room - len(self._tokens) - 1)

    def _prefill(self) -> NDArray[np.float32] | None:
        """Bring the prompt into the cache, with what is there already; the last token's logits, None if cancelled."""
        plan, count = self._plan, len(self._plan.prompt)
        cuts = self._cuts(count)
        with self._turn.held() as turns:
            if turns is None:
                self._finish = "cancelled"
                return None
            if plan.before is not None:
                plan.before()
            self._reused = self._reuse(turns, cuts)
            # Asked here, since an engine may have to try it out.
            if plan.lookup or (plan.lookup is None and turns.session.verifies_alike):
                self._lookup = PromptLookup([*plan.source, *plan.prompt], turns.session.most_verified - 1)
        logits: NDArray[np.float32] | None = None
        for end in cuts:
            if end <= self._reused:
                continue
            with self._turn.held() as turns:
                if turns is None:
                    self._finish = "cancelled"
                    return None
                start = len(turns.tokens)
                logits = turns.session.prefill(plan.prompt[start:end])
                turns.tokens.extend(plan.prompt[start:end])
                if (turns.cuts[-1] if turns.cuts else 0) == start:
                    turns.cuts.append(end)
                if plan.prefixes is not None and end == plan.shared and turns.cuts[-1:] == [end]:
                    self._fresh = turns.copy()
        return logits

    def _cuts(self, count: int) -> list[int]:
        """Where runs of prefill end. They follow from the prompt alone, so that equal prompts are computed alike."""
        chunk = int(getattr(self._turns.session, "chunk", CHUNK))
        shared = self._plan.shared if 0 < self._plan.shared < count else 0
        parts = [0, shared, count] if shared else [0, count]
        return [
            min(end, until)
            for start, until in pairwise(parts)
            for end in range(start + chunk, until + chunk, chunk)
        ]

    def _reuse(self, turns: SessionTurns, cuts: list[int]) -> int:
        """Keep of the cache, in memory or on disk, what is of this prompt; the number of tokens."""
        plan = self._plan
        most = min(common_length(turns.tokens, plan.prompt), len(plan.prompt) - 1)
        kept = most
        if not plan.any_reuse:
            alike = common_length(turns.cuts, cuts)
            kept = max((cut for cut in cuts[:alike] if cut <= most), default=0)
        if plan.prefixes is not None and plan.shared > kept:
            state = plan.prefixes.find(plan.prompt, [cut for cut in cuts if kept < cut <= plan.shared])
            if state is not None:
                try:
                    turns.put(state, [cut for cut in cuts if cut <= len(state.tokens)])
                except InputError:  # a cache of another build of the artifact: as good as none
                    turns.settle()
                    kept = 0
                else:
                    return len(state.tokens)
        turns.forget(kept)
        return kept

    def _finished(self) -> None:
        end = time.perf_counter()
        first = self._first if self._first is not None else end
        later = len(self._tokens) - 1
        plan = self._plan
        self.result = Generation(
            text="".join(self._pieces),
            tokens=tuple(self._tokens),
            finish_reason=self._finish or "cancelled",
            stop=plan.stops.found,
            prompt_tokens=len(plan.prompt),
            reused_tokens=self._reused,
            seed=plan.sampler.seed,
            timings=Timings(
                first_token=first - self._started,
                total=end - self._started,
                tokens_per_s=later / (end - first) if later > 0 and end > first else 0.0,
            ),
            lookup=None if self._lookup is None else self._lookup.statistics,
        )
        # After the text, since a slow disk would hold up its first token.
        if self._fresh is not None and plan.prefixes is not None:
            fresh, self._fresh = self._fresh, None
            plan.prefixes.keep(fresh)


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """How many items two sequences have in common from their beginning on."""
    count = min(len(one), len(other))
    different = np.flatnonzero(np.asarray(one[:count]) != np.asarray(other[:count]))
    return int(different[0]) if len(different) else count
