"""One decoder session, several texts: who has it now, and which tokens its cache holds.

A text keeps the session from its first token to its last; others wait. A text that nobody reads on (a stream left in
the middle) lends it to who waits: its cache is copied away and put back when it is read on, so that it goes on as if
nothing had been.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType

import numpy as np

from ..errors import EngineError, UsageError
from ..runtimes.decoder_contract import CacheState, DecoderSession

LEND_AFTER = 0.5
"""Seconds without reading after which a stream lends its session to who waits."""

_LOOK_EVERY = 0.05


@dataclass(frozen=True)
class Lent:
    """What a text needs to go on after its session was lent: a copy of the cache, where its runs of prefill ended, and
    the tokens of the source text that an encoder-decoder had read.
    """

    state: CacheState
    cuts: tuple[int, ...]
    source: tuple[int, ...] = ()


class SessionTurns:
    """A session with the tokens in its cache, handed from text to text.

    Attributes:
        session: as it was given; to be used inside :meth:`Turn.held` alone.
        tokens: the tokens in its cache.
        cuts: where runs of prefill ended, as far as the cache was filled by prefill.

    Args:
        session: not used elsewhere; closed by :meth:`close`.
        owner: what it is called in messages.
    """

    def __init__(self, session: DecoderSession, owner: str = "writer") -> None:
        self.session = session
        self._owner = owner
        self.tokens: list[int] = []
        self.cuts: list[int] = []
        self._condition = threading.Condition()
        self._turn: Turn | None = None
        self._running = self._closed = False
        self._waiting = 0
        self._touched = 0.0

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._closed

    def close(self) -> None:
        """Close the session as soon as no run is under way."""
        with self._condition:
            self._closed = True
            while self._running:
                self._wait()
            self.session.close()
            self._condition.notify_all()

    def fork(self) -> SessionTurns:
        """Another session on the same weights with a copy of the cache as it is between two runs."""
        with self._condition:
            while self._running and not self._closed:
                self._wait()
            self.check_open()
            other = SessionTurns(self.session.fork())
            other.tokens, other.cuts = list(self.tokens), list(self.cuts)
            return other

    def _wait(self) -> None:
        """Wait for the end of a run, or a little while; the condition is held."""
        self._waiting += 1
        try:
            self._condition.wait(_LOOK_EVERY)
        finally:
            self._waiting -= 1

    def check_open(self) -> None:
        """Raises UsageError when it was closed."""
        if self._closed:
            raise UsageError(f"this {self._owner} was closed; load the bundle again")

    # What a text does with the session while it holds it
    def forget(self, length: int) -> None:
        """Keep the first ``length`` tokens in the cache."""
        self.session.rewind(min(length, self.session.length))
        del self.tokens[length:]
        while self.cuts and self.cuts[-1] > length:
            self.cuts.pop()

    def put(self, state: CacheState, cuts: Sequence[int]) -> None:
        """Replace the cache by a saved one."""
        self.tokens, self.cuts = [], []
        self.session.load_cache(state)
        self.tokens, self.cuts = state.tokens.tolist(), list(cuts)

    def copy(self) -> CacheState:
        """A copy of the cache with its tokens."""
        return CacheState(np.array(self.tokens, np.int32), self.session.save_cache().arrays)

    def lend(self) -> Lent:
        """What the text that has the session needs to go on later."""
        return Lent(self.copy(), tuple(self.cuts))

    def take_back(self, lent: Lent) -> None:
        """Bring back what was lent."""
        self.put(lent.state, lent.cuts)

    def settle(self) -> None:
        """After a failed run: the cache and the list of its tokens agree again."""
        # A session that cannot even rewind will say so again when it is used next; here the first error is told.
        with suppress(EngineError):
            self.forget(min(self.session.length, len(self.tokens)))


class Turn:
    """A text's claim to a session.

    Args:
        turns: the session's.
        cancelled: set from outside when the text shall end; waiting ends then too.
    """

    def __init__(self, turns: SessionTurns, cancelled: threading.Event) -> None:
        self._turns, self._cancelled = turns, cancelled
        self._lent: Lent | None = None

    def held(self) -> Held:
        """The session for one run, waiting for it where another text has it; None when cancelled meanwhile.

        Raises:
            UsageError: what owns the session was closed.
        """
        return Held(self)

    def enter(self) -> SessionTurns | None:
        """What :meth:`held` begins with."""
        if not self._take():
            return None
        if self._lent is not None:
            lent, self._lent = self._lent, None
            try:
                self._turns.take_back(lent)
            except BaseException:
                self.leave(failed=True)
                raise
        return self._turns

    def leave(self, *, failed: bool) -> None:
        """What it ends with."""
        turns = self._turns
        try:
            if failed and not turns.closed:
                turns.settle()
        finally:
            with turns._condition:
                turns._running = False
                turns._touched = time.monotonic()
                if turns._waiting:
                    turns._condition.notify_all()

    def release(self) -> None:
        """Give the session up."""
        turns = self._turns
        self._lent = None
        with turns._condition:
            if turns._turn is self:
                turns._turn = None
                turns._condition.notify_all()

    def _take(self) -> bool:
        turns = self._turns
        with turns._condition:
            while True:
                turns.check_open()
                if self._cancelled.is_set():
                    return False
                if turns._turn in (None, self):
                    break
                if not turns._running and time.monotonic() - turns._touched >= LEND_AFTER:
                    turns._turn._lend()
                    break
                turns._wait()
            turns._turn, turns._running = self, True
        return True

    def _lend(self) -> None:
        self._lent = self._turns.lend()


class Held:
    """A text's hold on the session for one run; a class of its own, since a generator costs each token twice that."""

    __slots__ = ("_holds", "_turn")

    def __init__(self, turn: Turn) -> None:
        self._turn, self._holds = turn, False

    def __enter__(self) -> SessionTurns | None:
        turns = self._turn.enter()
        self._holds = turns is not None
        return turns

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._holds:
            self._turn.leave(failed=error is not None)
