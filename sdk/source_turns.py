"""One encoder-decoder session, several texts: as :mod:`~edgescribe.sdk.session_turns`, with the source that was read.

A text that lent its session reads its source again when it is read on, since a saved cache is of the target alone.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from ..runtimes.encoder_decoder_contract import EncoderDecoderSession
from .session_turns import Lent, SessionTurns


class SourceTurns(SessionTurns):
    """An encoder-decoder's session, handed from text to text.

    Attributes:
        session: as it was given; to be used inside :meth:`~edgescribe.sdk.session_turns.Turn.held` alone.
        source: the tokens that it has read.
        beams: forks of the session that a beam search left, to be used again by the next.
    """

    session: EncoderDecoderSession

    def __init__(self, session: EncoderDecoderSession) -> None:
        super().__init__(session, "summariser")
        self.source: tuple[int, ...] = ()
        self.beams: list[EncoderDecoderSession] = []

    def read(self, source: Sequence[int]) -> float:
        """Read a source; the seconds that it took."""
        before = time.perf_counter()
        self.tokens, self.cuts, self.source = [], [], ()
        self.session.read(source)
        self.source = tuple(source)
        return time.perf_counter() - before

    def lend(self) -> Lent:
        """See SessionTurns."""
        return Lent(self.copy(), tuple(self.cuts), self.source)

    def take_back(self, lent: Lent) -> None:
        """See SessionTurns."""
        if lent.source:
            self.read(lent.source)
        if len(lent.state.tokens):
            self.put(lent.state, lent.cuts)

    def fork(self) -> SourceTurns:
        """Another session on the same weights, with nothing written."""
        with self._condition:
            while self._running and not self._closed:
                self._wait()
            self.check_open()
            if not self.session.source_length:
                self.read([0])  # a session that has read nothing cannot be forked
            other = SourceTurns(self.session.fork())
            other.session.rewind(0)
            other.source = self.source
            return other

    def close(self) -> None:
        """Close the session and its forks as soon as no run is under way."""
        super().close()
        while self.beams:
            self.beams.pop().close()
