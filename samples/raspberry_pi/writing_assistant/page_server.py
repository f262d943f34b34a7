"""The page over HTTP: what a browser may ask for, how it is answered, and what it may not do.

====== ============ ========================================================================================
GET    /            the page; its script, style and icon beside it
GET    /templates   fields, actions and the student, as JSON
POST   /write       JSON in; a line of JSON for each event out (``waiting``, ``started``, ``piece``, ``end``, ``error``)
POST   /stop        stops a text by the id that its events told
====== ============ ========================================================================================
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
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from templates import Action, Field, Length, Templates
from writing_line import LAST_EVENTS, AlreadyWritingError, LineFullError, Order, WritingLine

PAGE = Path(__file__).with_name("page")
PAGE_FILES = {
    "/": ("index.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/style.css": ("style.css", "text/css"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
MOST_BODY_BYTES = 256 << 10
MOST_CHARACTERS = 20_000
BODY_SECONDS = 20.0
LEAST_ROOM = 32  # tokens that a prompt has to leave for the answer

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


class WriteRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Body of ``POST /write``. ``browser`` is any name that a page makes up for itself."""

    browser: Annotated[str, msgspec.Meta(min_length=8, max_length=64)]
    field: str
    action: str
    text: str
    length: Length = "medium"


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

    def __init__(self, line: WritingLine, order: Order) -> None:
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
        writer: writes the texts.
        templates: what can be written.
        names: by which hosts may be called besides addresses and ``localhost``.
    """

    def __init__(self, writer: edgescribe.Writer, templates: Templates, names: Iterable[str]) -> None:
        self._writer, self._templates = writer, templates
        self._names = {"localhost", *(name.lower() for name in names)}
        self._files = {path: ((PAGE / name).read_bytes(), kind) for path, (name, kind) in PAGE_FILES.items()}
        actions = [action for field in templates.fields for action in field.actions]
        self.line = WritingLine(writer, [action.prompt("") for action in actions if action.system.strip()])

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
            Route("/templates", self._about),
            Route("/write", self._write, methods=["POST"]),
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
        info, used = self._writer.info, self._writer.effective

        def action(each: Action) -> dict[str, str]:
            return {name: getattr(each, name).strip() for name in ("name", "title", "label", "example")}

        def field(each: Field) -> dict[str, object]:
            actions = [action(found) for found in each.actions]
            return {"name": each.name, "title": each.title, "notice": each.notice.strip(), "actions": actions}

        return _json(
            {
                "student": f"{info.name}, {info.precision} on {used.engine} {used.engine_version}",
                "most_characters": MOST_CHARACTERS,
                "lengths": self._templates.lengths,
                "fields": [field(each) for each in self._templates.fields],
            }
        )

    async def _write(self, request: Request) -> Response:
        asked = await _read(request, WriteRequest)
        found = self._templates.find(asked.field, asked.action)
        if found is None:
            name = f"{asked.field}/{asked.action}"[:80]
            raise RequestError(404, f"There is no template {name!r}. Load the page anew.")
        _, action = found
        if not asked.text.strip():
            raise RequestError(400, "There is no text. Type some first.")
        if len(asked.text) > MOST_CHARACTERS:
            raise RequestError(
                413, f"The text has {len(asked.text):,} characters, and {MOST_CHARACTERS:,} are allowed. Shorten it."
            )
        prompt = action.prompt(asked.text)
        wanted = self._templates.lengths[asked.length]
        try:
            count = len(await asyncio.to_thread(self._writer.prompt_tokens, prompt))
        except edgescribe.InputError as error:
            raise RequestError(400, str(error)) from None
        room = self._writer.context - count
        if room < min(LEAST_ROOM, wanted):
            most = self._writer.context - min(LEAST_ROOM, wanted)
            raise RequestError(
                413,
                f"The text is too long: with its instructions it has {count:,} tokens, and {most:,} fit. "
                f"Shorten it by about {100 * (count - most) // count + 1} %.",
            )
        choosing = msgspec.structs.asdict(self._templates.choosing(action))
        options = {"max_new_tokens": min(wanted, room), "stop": action.stop, **choosing}
        try:
            order = self.line.join(asked.browser, prompt, options)
        except AlreadyWritingError as error:
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
                    raise RequestError(413, f"The request is over {MOST_BODY_BYTES >> 10} KiB. Shorten the text.")
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
