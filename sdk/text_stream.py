"""A text while it is being written: read it piece by piece, stop it, ask for the result."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Generator, Iterator
from types import TracebackType
from typing import Generic, Protocol, TypeVar

from ..errors import UsageError

Found_co = TypeVar("Found_co", covariant=True)


class Run(Protocol[Found_co]):
    """What writes one text, as :class:`~edgescribe.sdk.generation.GenerationRun`."""

    cancelled: threading.Event

    @property
    def result(self) -> Found_co | None:
        """The whole text once it is at its end."""
        ...

    def pieces(self) -> Generator[str, None, None]:
        """The text in pieces; run once."""
        ...

    def end(self) -> None:
        """Give the session free and put the result together, wherever the text stands."""
        ...


class Writing(Iterator[str], Generic[Found_co]):
    """The pieces of one text as they are written; made by :meth:`~edgescribe.sdk.writer.Writer.stream` and its like.

    Nothing is computed but when a piece is asked for. Pieces are never empty, never end inside a character, and
    together are ``result.text``. Read by one thread at a time; :meth:`cancel` may be called from any.
    """

    def __init__(self, run: Run[Found_co]) -> None:
        self._run = run
        self._pieces = run.pieces()
        self._reading = threading.Lock()

    def __iter__(self) -> Writing[Found_co]:
        return self

    def __next__(self) -> str:
        """The next piece.

        Raises:
            EngineError: the engine failed.
            UsageError: the writer, or what else it is of, was closed, or another thread is reading.
        """
        if not self._reading.acquire(blocking=False):
            raise UsageError("another thread is reading this text; give each text to one reader")
        try:
            return next(self._pieces)
        finally:
            self._reading.release()

    @property
    def result(self) -> Found_co:
        """The whole text with all that is known of it.

        Raises:
            UsageError: it is not at its end; read it to the end, or cancel and close it.
        """
        result = self._run.result
        if result is None:
            raise UsageError("the text is not written yet; read it to its end, or close it, and ask then")
        return result

    def cancel(self) -> None:
        """Let it end with the token that is being computed, also from another thread; reading on ends at once."""
        self._run.cancelled.set()

    def close(self) -> None:
        """Cancel it and give the session free, as soon as the token that is being computed is there."""
        self.cancel()
        with self._reading:
            self._pieces.close()
            self._run.end()

    def __enter__(self) -> Writing[Found_co]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class AsyncWriting(AsyncIterator[str], Generic[Found_co]):
    """The same for ``async for``: each token is computed in a thread, the event loop stays free.

    A cancelled task cancels the text.
    """

    def __init__(self, writing: Writing[Found_co]) -> None:
        self._writing = writing

    def __aiter__(self) -> AsyncWriting[Found_co]:
        return self

    async def __anext__(self) -> str:
        """The next piece; raises as :meth:`Writing.__next__`."""
        waiting = asyncio.get_running_loop().run_in_executor(None, next, self._writing, None)
        try:
            piece = await asyncio.shield(waiting)
        except asyncio.CancelledError:
            self.cancel()
            # The token under way is finished by its thread, which then gives the session free.
            waiting.add_done_callback(self._give_up)
            raise
        if piece is None:
            raise StopAsyncIteration
        return piece

    def _give_up(self, done: asyncio.Future[str | None]) -> None:
        done.cancelled() or done.exception()  # asked for, or the event loop complains that nobody did
        self._writing.close()

    @property
    def result(self) -> Found_co:
        """As :attr:`Writing.result`."""
        return self._writing.result

    def cancel(self) -> None:
        """As :meth:`Writing.cancel`."""
        self._writing.cancel()

    async def aclose(self) -> None:
        """As :meth:`Writing.close`."""
        self.cancel()
        await asyncio.get_running_loop().run_in_executor(None, self._writing.close)

    async def __aenter__(self) -> AsyncWriting[Found_co]:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()
