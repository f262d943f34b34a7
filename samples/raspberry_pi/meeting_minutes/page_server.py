"""The page over HTTP: what a browser may ask for, how it is answered, and what it may not do.

====== ========== =======================================================================================
GET    /          the page; its script, style and icon beside it
GET    /about     the student and the limits, as JSON
POST   /minutes   JSON in; a line of JSON for each event out (``waiting``, ``started``, ``part``, ``progress``, ``end``,
                  ``error``)
POST   /stop      stops what is at work, by the id that its events told
====== ========== =======================================================================================
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Annotated, TypeVar

import edgescribe
import msgspec
from minutes_line import LAST_EVENTS, AlreadyWaitingError, LineFullError, MinutesLine, Order
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PAGE = Path(__file__).with_name("page")
PAGE_FILES = {
    "/": ("index.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/style.css": ("style.css", "text/css"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
MOST_BODY_BYTES = 8 << 20
MOST_CHARACTERS = 2_000_000  # two days of talking; longer ones go through the folder
BODY_SECONDS = 60.0

HEADERS = {
    # Nothing but this server's own files, no inline script, no frame, no form that goes elsewhere.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=(), browsing-topics=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class MinutesRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Body of ``POST /minutes``. ``browser`` is any name that a page makes up for itself."""

    browser: Annotated[str, msgspec.Meta(min_length=8, max_length=64)]
    text: str
    title: Annotated[str, msgspec.Meta(max_length=200)] = ""


class StopRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Body of ``POST /stop``."""

    id: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


Body = TypeVar("Body", bound=msgspec.Struct)


class RequestError(Exception):
    """A request that is answered with a status and a message for people."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class EventStream(Response):
    """An order's events as lines of JSON. When the browser goes away the order is stopped."""

    media_type = "application/x-ndjson"

    def __init__(self, line: MinutesLine, order: Order) -> None:
        super().__init__()
        del self.headers["content-length"]
        self._line, self._order = line, order

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events until the last one, or until nobody listens."""
        gone = asyncio.create_task(_disconnected(receive))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            last = False
            while not last:
                get = asyncio.create_task(self._order.events.get())
                await asyncio.wait((get, gone), return_when=asyncio.FIRST_COMPLETED)
                if gone.done():
                    get.cancel()
                    return
                events = [get.result()]
                while not self._order.events.empty():
                    events.append(self._order.events.get_nowait())
                last = events[-1]["event"] in LAST_EVENTS
                body = b"".join(msgspec.json.encode(event) + b"\n" for event in events)
                await send({"type": "http.response.body", "body": body, "more_body": not last})
        finally:
            gone.cancel()
            self._line.leave(self._order)


class PageServer:
    """Answers requests; :meth:`application` is what a server runs.

    Args:
        summarizer: writes the summaries.
        names: by which hosts may be called besides addresses and ``localhost``.
    """

    def __init__(self, summarizer: edgescribe.Summarizer, names: Iterable[str]) -> None:
        self._summarizer = summarizer
        self._names = {"localhost", *(name.lower() for name in names)}
        self._files = {path: ((PAGE / name).read_bytes(), kind) for path, (name, kind) in PAGE_FILES.items()}
        self.line = MinutesLine(summarizer, summarizer.info.name)

    def application(self) -> ASGIApp:
        """The application."""

        @contextlib.asynccontextmanager
        async def lifespan(app: Starlette) -> AsyncIterator[None]:
            work = asyncio.create_task(self.line.run())
            try:
                yield
            finally:
                self.line.close()
                work.cancel()
                await asyncio.to_thread(self.line.wait)

        routes = [Route(path, self._file) for path in PAGE_FILES]
        routes += [
            Route("/about", self._about),
            Route("/minutes", self._minutes, methods=["POST"]),
            Route("/stop", self._stop, methods=["POST"]),
        ]
        app = Starlette(routes=routes, lifespan=lifespan, exception_handlers={RequestError: _answer_error})
        app.router.redirect_slashes = False
        return self._guarded(app)

    def _guarded(self, app: ASGIApp) -> ASGIApp:
        """Refuses requests that other sites make a browser send, and adds the headers to every answer."""

        async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return

            async def send_with_headers(message: Message) -> None:
                if message["type"] == "http.response.start":
                    pairs = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                    message = {**message, "headers": [*message["headers"], *pairs]}
                await send(message)

            refusal = self._refusal(Request(scope))
            if refusal is None:
                await app(scope, receive, send_with_headers)
            else:
                await _json({"error": refusal}, 403)(scope, receive, send_with_headers)

        return guarded

    def _refusal(self, request: Request) -> str | None:
        """Why a request is refused before it is looked at: another site's page may have made the browser send it."""
        host = request.headers.get("host", "")
        if not _is_allowed(host, self._names):
            return f"this board is not called {host[:100]!r}; use its address, or start the program with --name"
        origin = request.headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            return "a page of another site may not use this one"
        return None

    async def _file(self, request: Request) -> Response:
        content, kind = self._files[request.url.path]
        return Response(content, media_type=kind)

    async def _about(self, request: Request) -> Response:
        info, used = self._summarizer.info, self._summarizer.effective
        return _json(
            {
                "student": f"{info.name}, {info.precision} on {used.engine} {used.engine_version}",
                "most_characters": MOST_CHARACTERS,
            }
        )

    async def _minutes(self, request: Request) -> Response:
        asked = await _read(request, MinutesRequest)
        if not asked.text.strip():
            raise RequestError(400, "There is no transcript. Paste one, or choose a file.")
        if len(asked.text) > MOST_CHARACTERS:
            raise RequestError(
                413,
                f"The transcript has {len(asked.text):,} characters, and {MOST_CHARACTERS:,} are allowed here. Drop it "
                "into the board's folder instead.",
            )
        title = " ".join(asked.title.split()) or "Meeting"
        try:
            order = self.line.join(asked.browser, title, asked.text)
        except AlreadyWaitingError as error:
            raise RequestError(409, str(error)) from None
        except LineFullError as error:
            raise RequestError(503, str(error)) from None
        return EventStream(self.line, order)

    async def _stop(self, request: Request) -> Response:
        asked = await _read(request, StopRequest)
        return _json({"stopped": self.line.stop(asked.id)})


def _is_allowed(host: str, names: set[str]) -> bool:
    """Whether a Host header is an address or a known name: a name that someone else's server pointed here is not."""
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() and not host.endswith("]") else host
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
        return True
    return name.lower().removesuffix(".") in names


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _read(request: Request, kind: type[Body]) -> Body:
    """A request's JSON body; RequestError says what is wrong with it."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise RequestError(415, "the body has to be application/json")
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                body += part
                if len(body) > MOST_BODY_BYTES:
                    raise RequestError(413, f"The request is over {MOST_BODY_BYTES >> 20} MiB. Shorten the text.")
        return msgspec.json.decode(body, type=kind)
    except TimeoutError:
        raise RequestError(408, f"the body did not arrive within {BODY_SECONDS:.0f} seconds") from None
    except ClientDisconnect:
        raise RequestError(400, "the browser went away") from None
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise RequestError(400, f"the body is not as expected: {error}") from None


def _json(content: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(content), status, media_type="application/json")


async def _answer_error(request: Request, error: Exception) -> Response:
    status = error.status if isinstance(error, RequestError) else 500
    return _json({"error": str(error)}, status)
