"""The line of browsers before the one writer: first come, first served, each browser at one place at a time.

A text is written in a thread of its own and its pieces are put into the browser's queue, so that a slow reader never
keeps the others waiting. Nothing of a text is kept once its browser has it, and nothing of it is logged.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

import edgescribe

LOG = logging.getLogger(__name__)
Event = dict[str, Any]
Prompt = str | list[dict[str, str]]
Reason = Literal["cancelled", "shutdown"]
LAST_EVENTS = ("end", "error")
MOST_WAITING = 16


class RefusedError(Exception):
    """A browser may not join the line now; the message says why."""


class AlreadyWritingError(RefusedError):
    """The browser has a place in the line already."""


class LineFullError(RefusedError):
    """Too many wait."""


@dataclass(eq=False)
class Order:
    """A text that a browser asked for.

    Attributes:
        browser: who asked.
        prompt: what asks for it.
        options: keywords of :meth:`edgescribe.Writer.stream`.
        id: known to the browser alone; with it the text can be stopped.
        events: what happens, in order; one of ``LAST_EVENTS`` is the last.
    """

    browser: str
    prompt: Prompt
    options: dict[str, Any]
    id: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    events: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)
    stop: threading.Event = field(default_factory=threading.Event)
    writing: Any = None


class WritingLine:
    """Hands the writer from order to order.

    Args:
        writer: used by one thread alone.
        system_prompts: conversations whose system prompts are read into the writer's prefix cache while nobody waits.
        most_waiting: orders that may wait besides the one that is being written.
    """

    def __init__(
        self,
        writer: edgescribe.Writer,
        system_prompts: Iterable[Prompt],
        most_waiting: int = MOST_WAITING,
    ) -> None:
        self._writer, self._most = writer, most_waiting
        self._to_read = deque(system_prompts)
        self._waiting: deque[Order] = deque()
        self._current: Order | None = None
        self._joined = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "writer")
        self._closed = False

    def join(self, browser: str, prompt: Prompt, options: dict[str, Any]) -> Order:
        """Take a place at the end of the line.

        Raises:
            AlreadyWritingError: the browser has a place already.
            LineFullError: too many wait, or the program is ending.
        """
        if any(order.browser == browser for order in self._orders()):
            raise AlreadyWritingError("This page is writing a text already. Stop it, or wait for its end.")
        if self._closed or len(self._waiting) >= self._most:
            raise LineFullError(f"{len(self._waiting)} others wait for the writer already. Try again in a minute.")
        order = Order(browser, prompt, options)
        self._waiting.append(order)
        self._tell_places()
        self._joined.set()
        return order

    def stop(self, id: str) -> bool:
        """Stop the text of this id within a token, or take it out of the line; whether there was one."""
        for order in self._orders():
            if secrets.compare_digest(order.id, id):
                self.leave(order)
                return True
        return False

    def leave(self, order: Order, reason: Reason = "cancelled") -> None:
        """Stop an order, wherever it stands; nothing happens where it is done."""
        order.stop.set()
        if order is self._current:
            if order.writing is not None:
                order.writing.cancel()
        elif order in self._waiting:
            self._waiting.remove(order)
            order.events.put_nowait({"event": "end", "reason": reason, "tokens": 0})
            self._tell_places()

    async def run(self) -> None:
        """Serve until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            if self._waiting:
                order = self._current = self._waiting.popleft()
                self._tell_places()
                try:
                    last = await loop.run_in_executor(self._thread, self._write, order, loop)
                finally:
                    self._current = None
                # told when its browser may ask for the next one already
                order.events.put_nowait(last)
            elif self._to_read:
                await loop.run_in_executor(self._thread, self._read_system_prompt, self._to_read.popleft())
            else:
                self._joined.clear()
                await self._joined.wait()

    def close(self) -> None:
        """Stop every order and take no more."""
        self._closed = True
        self._to_read.clear()
        for order in list(self._orders()):
            self.leave(order, "shutdown")

    def wait(self) -> None:
        """Wait for the token that is being computed; the writer may be closed then."""
        self._thread.shutdown()

    def _orders(self) -> list[Order]:
        return [*([] if self._current is None else [self._current]), *self._waiting]

    def _tell_places(self) -> None:
        """Tell each who waits how many are before it."""
        first = 0 if self._current is None else 1
        for ahead, order in enumerate(self._waiting, first):
            order.events.put_nowait({"event": "waiting", "id": order.id, "ahead": ahead})

    def _write(self, order: Order, loop: asyncio.AbstractEventLoop) -> Event:
        """Write one text and give its last event; runs in the writer's thread."""

        def tell(event: Event) -> None:
            with contextlib.suppress(RuntimeError):  # the event loop is closed: nobody listens any more
                loop.call_soon_threadsafe(order.events.put_nowait, event)

        tell({"event": "started", "id": order.id})
        try:
            with self._writer.stream(order.prompt, **order.options) as writing:
                order.writing = writing
                if order.stop.is_set():
                    writing.cancel()
                begin = time.perf_counter()
                first: float | None = None
                for piece in writing:
                    now = round(time.perf_counter() - begin, 4)
                    first = now if first is None else first
                    tell({"event": "piece", "text": piece, "seconds": now})
            result = writing.result
            return {
                "event": "end",
                "reason": "shutdown" if self._closed else result.finish_reason,
                "tokens": len(result.tokens),
                "first_token_seconds": None if first is None else round(result.timings.first_token, 4),
                "tokens_per_second": round(result.timings.tokens_per_s, 2),
                "prompt_tokens": result.prompt_tokens,
                "reused_tokens": result.reused_tokens,
            }
        except edgescribe.InputError as error:
            return {"event": "error", "message": str(error)}
        except Exception as error:  # noqa: BLE001 - one text's failure must not end the line for all
            # the kind and the place alone: a message might quote the text
            place = error.__traceback__
            while place is not None and place.tb_next is not None:
                place = place.tb_next
            where = "" if place is None else f" ({place.tb_frame.f_code.co_filename}:{place.tb_lineno})"
            LOG.error("a text could not be written: %s%s", type(error).__name__, where)
            return {"event": "error", "message": "The writer failed. Try again; the log on the board says more."}
        finally:
            order.writing = None

    def _read_system_prompt(self, prompt: Prompt) -> None:
        try:
            self._writer.generate(prompt, max_new_tokens=1)
        except edgescribe.EdgescribeError as error:  # it only saves time; no user's text is in it
            LOG.warning("a template's system prompt could not be read ahead: %s", error)
