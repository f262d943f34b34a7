"""The line of browsers before the one summariser: first come, first served, each browser at one place at a time.

Minutes are taken in a thread of their own and what happens is put into the browser's queue, so that a slow reader
never keeps the others waiting. Nothing of a transcript is kept once its browser has the minutes, and nothing is logged.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import edgescribe
from minutes import MinuteTaker, Summarizes
from minutes_markdown import as_markdown

LOG = logging.getLogger(__name__)
Event = dict[str, Any]
Reason = Literal["done", "cancelled", "shutdown"]
LAST_EVENTS = ("end", "error")
MOST_WAITING = 4  # each holds its transcript in memory


class RefusedError(Exception):
    """A browser may not join the line now; the message says why."""


class AlreadyWaitingError(RefusedError):
    """The browser has a place in the line already."""


class LineFullError(RefusedError):
    """Too many wait."""


@dataclass(eq=False)
class Order:
    """Minutes that a browser asked for.

    Attributes:
        browser: who asked.
        title: of the meeting.
        text: the transcript.
        id: known to the browser alone; with it the order can be stopped.
        events: what happens, in order; one of ``LAST_EVENTS`` is the last.
    """

    browser: str
    title: str
    text: str
    id: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    events: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)
    stop: threading.Event = field(default_factory=threading.Event)


class MinutesLine:
    """Hands the summariser from order to order.

    Args:
        summarizer: may be used by other threads as well; it takes turns part by part.
        student: who that is, for the minutes.
        most_waiting: orders that may wait besides the one at work.
    """

    def __init__(self, summarizer: Summarizes, student: str, most_waiting: int = MOST_WAITING) -> None:
        self._summarizer, self._student, self._most = summarizer, student, most_waiting
        self._waiting: deque[Order] = deque()
        self._current: Order | None = None
        self._joined = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "minutes")
        self._closed = False

    def join(self, browser: str, title: str, text: str) -> Order:
        """Take a place at the end of the line.

        Raises:
            AlreadyWaitingError: the browser has a place already.
            LineFullError: too many wait, or the program is ending.
        """
        if any(order.browser == browser for order in self._orders()):
            raise AlreadyWaitingError("This page is having minutes taken already. Stop that, or wait for its end.")
        if self._closed or len(self._waiting) >= self._most:
            raise LineFullError(f"{len(self._waiting)} others wait for their minutes already. Try again in a while.")
        order = Order(browser, title, text)
        self._waiting.append(order)
        self._tell_places()
        self._joined.set()
        return order

    def stop(self, id: str) -> bool:
        """Stop the order of this id after the part at hand, or take it out of the line; whether there was one."""
        for order in self._orders():
            if secrets.compare_digest(order.id, id):
                self.leave(order)
                return True
        return False

    def leave(self, order: Order, reason: Reason = "cancelled") -> None:
        """Stop an order, wherever it stands; nothing happens where it is done."""
        order.stop.set()
        if order in self._waiting:
            self._waiting.remove(order)
            order.events.put_nowait({"event": "end", "reason": reason})
            self._tell_places()

    async def run(self) -> None:
        """Serve until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            if self._waiting:
                order = self._current = self._waiting.popleft()
                self._tell_places()
                try:
                    last = await loop.run_in_executor(self._thread, self._take, order, loop)
                finally:
                    self._current = None
                # told when its browser may ask for the next ones already
                order.events.put_nowait(last)
            else:
                self._joined.clear()
                await self._joined.wait()

    def close(self) -> None:
        """Stop every order and take no more."""
        self._closed = True
        for order in list(self._orders()):
            self.leave(order, "shutdown")

    def wait(self) -> None:
        """Wait for the part that is being summarised; the summariser may be closed then."""
        self._thread.shutdown()

    def _orders(self) -> list[Order]:
        return [*([] if self._current is None else [self._current]), *self._waiting]

    def _tell_places(self) -> None:
        """Tell each who waits how many are before it."""
        first = 0 if self._current is None else 1
        for ahead, order in enumerate(self._waiting, first):
            order.events.put_nowait({"event": "waiting", "id": order.id, "ahead": ahead})

    def _take(self, order: Order, loop: asyncio.AbstractEventLoop) -> Event:
        """Take one order's minutes and give its last event; runs in a thread of its own."""

        def tell(event: Event) -> None:
            with contextlib.suppress(RuntimeError):  # the event loop is closed: nobody listens any more
                loop.call_soon_threadsafe(order.events.put_nowait, event)

        def on_progress(progress: edgescribe.LongProgress) -> None:
            tell({"event": "progress", "parts": progress.parts, "characters": progress.characters})

        tell({"event": "started", "id": order.id})
        try:
            report = edgescribe.TranscriptReport()
            turns = edgescribe.transcript_turns(order.text, report)
            taker = MinuteTaker(order.title, turns, report, self._summarizer)
            for summary in taker.run(on_progress):
                if order.stop.is_set():
                    return {"event": "end", "reason": "shutdown" if self._closed else "cancelled"}
                if summary.level == 0 and not summary.final:
                    tell({"event": "part", "start": summary.start, "text": summary.text})
            markdown = as_markdown(taker.minutes, self._student)
            return {"event": "end", "reason": "done", "minutes": asdict(taker.minutes), "markdown": markdown}
        except edgescribe.InputError as error:
            return {"event": "error", "message": str(error)}
        except Exception as error:  # noqa: BLE001 - one transcript's failure must not end the line for all
            # the kind and the place alone: a message might quote the transcript
            place = error.__traceback__
            while place is not None and place.tb_next is not None:
                place = place.tb_next
            where = "" if place is None else f" ({place.tb_frame.f_code.co_filename}:{place.tb_lineno})"
            LOG.error("minutes could not be taken: %s%s", type(error).__name__, where)
            return {"event": "error", "message": "Summarising failed. Try again; the log on the board says more."}
