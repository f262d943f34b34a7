"""Takes the minutes of meetings: of transcripts dropped into a folder, and of those given to a page.

::

    python meeting_minutes.py --bundle bundle --inbox inbox --outbox outbox --rejected rejected [--port 8080 | --once]

A transcript (plain text with ``Name: words``, WebVTT or SRT) goes from ``inbox/monday.vtt`` to ``outbox/monday.vtt``
once its minutes are there as ``outbox/monday.md``. What is no transcript goes to ``rejected/`` with the reason beside
it. Names that begin with a dot or end with ``.part``, ``.tmp``, ``~`` and the like are left alone. The page does the
same for a transcript that is pasted or chosen there, and neither stores nor logs it; by default just this machine can
open it. Without the three folders there is the page alone.

SIGTERM and Ctrl-C end it after the part of a transcript at hand. Exit codes: 0 done or stopped; 2 wrong usage; 3 the
memory limit is too small; 4 the bundle, a folder or the address cannot be used; 5 no engine for the bundle is installed
or it fails; 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ipaddress
import logging
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType

import edgescribe
import filing
import uvicorn
from minutes_folder import FolderError, Folders, MinutesFolder, claimed, prepare
from page_server import PageServer
from service_manager import log_to_stderr, notify

LOG = logging.getLogger("meeting_minutes")
FOLDERS = ("inbox", "outbox", "rejected")
NOT_USABLE = 4


class AddressError(Exception):
    """The page cannot be served there; the message says why."""


class Server(uvicorn.Server):
    """Tells systemd when the page is there, and stops what is at work before it waits for the browsers."""

    def __init__(self, config: uvicorn.Config, page: PageServer, stop: threading.Event) -> None:
        super().__init__(config)
        self._page, self._stop = page, stop
        self.stopped_by: int | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Let SIGTERM and SIGINT end the server; the exit code is for the program to give."""

        def on_signal(number: int, frame: FrameType | None) -> None:
            self.stopped_by = number
            self.should_exit = True

        before = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and say so."""
        await super().startup(sockets)
        if self.started:
            for listening in sockets or ():
                address, port = listening.getsockname()[:2]
                LOG.info("the page is at http://%s:%d/", f"[{address}]" if ":" in address else address, port)
            notify("READY=1")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop what is at work, then the connections."""
        notify("STOPPING=1")
        self._stop.set()
        self._page.line.close()
        await super().shutdown(sockets)


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; ends the program with exit code 2 where it is wrong."""
    parser = argparse.ArgumentParser(
        prog="meeting_minutes.py", description="Takes minutes of transcripts, from a folder and on a page."
    )
    parser.add_argument("--bundle", type=Path, required=True, help="folder that edgescribe convert wrote")
    parser.add_argument("--inbox", type=Path, help="folder to watch for transcripts")
    parser.add_argument("--outbox", type=Path, help="gets minutes and their transcripts")
    parser.add_argument("--rejected", type=Path, help="gets what is no transcript, with the reason")
    parser.add_argument("--once", action="store_true", help="do what is in the inbox, then end; serves no page")
    parser.add_argument("--interval", type=_seconds, default=1.0, help="seconds between looks (%(default)s)")
    parser.add_argument("--settle", type=_seconds, default=2.0, help="seconds without change to be whole (%(default)s)")
    parser.add_argument("--max-bytes", type=_bytes, default=64 << 20, help="larger files are rejected (%(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="address to serve at; 0.0.0.0 for all (%(default)s)")
    parser.add_argument("--port", type=int, default=8080, help="0 takes a free one (%(default)s)")
    parser.add_argument(
        "--name", action="append", default=[], help="a name by which browsers may call this machine; may be repeated"
    )
    parser.add_argument("--source-context", type=int, help="most tokens read at once; the bundle's by default")
    parser.add_argument("--memory-mib", type=float, help="refuse to start where more memory would be taken")
    parser.add_argument("--runtime", choices=("litert", "onnxruntime", "openvino"), help="engine; the best by default")
    parser.add_argument("--threads", type=int, default=0, help="engine's threads; 0: as many as fit the machine")
    parser.add_argument("--verbose", action="store_true", help="log more; never a transcript")
    options = parser.parse_args(arguments)
    if not 0 <= options.port <= 65535:
        parser.error(f"--port {options.port} is not between 0 and 65535")
    given = [name for name in FOLDERS if getattr(options, name) is not None]
    if given and len(given) < len(FOLDERS):
        parser.error("--inbox, --outbox and --rejected go together")
    if options.once and not given:
        parser.error("--once needs --inbox, --outbox and --rejected")
    return options


def _seconds(value: str) -> float:
    number = float(value)
    if not 0 <= number <= 3600:
        raise argparse.ArgumentTypeError(f"{value!r} is not between 0 and 3600 seconds")
    return number


def _bytes(value: str) -> int:
    number = int(value)
    if not 1 <= number <= 1 << 30:
        raise argparse.ArgumentTypeError(f"{value!r} is not between 1 and {1 << 30} bytes")
    return number


def listen(host: str, port: int) -> socket.socket:
    """A socket at an address of this machine.

    Raises:
        AddressError: there is no such address, or the port is taken.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family, backlog=128)
    except (OSError, UnicodeError) as error:
        raise AddressError(
            f"--host {host} --port {port}: {getattr(error, 'strerror', None) or error}; give an address of this "
            "machine and a free port"
        ) from None


def own_names() -> list[str]:
    """What this machine is called, in its network too."""
    name = socket.gethostname().partition(".")[0]
    return [socket.gethostname(), name, f"{name}.local"]


def folders_of(options: argparse.Namespace) -> Folders | None:
    """The folders, made where they are missing; None where none were given.

    Raises:
        FolderError: one cannot be used, or they are not three.
    """
    if options.inbox is None:
        return None
    named = {name: prepare(getattr(options, name), name) for name in FOLDERS}
    if len(set(named.values())) < len(named):
        raise FolderError("--inbox, --outbox and --rejected have to be three folders")
    return Folders(**named, interval=options.interval, settle=options.settle, max_bytes=options.max_bytes)


def work(options: argparse.Namespace, stop: threading.Event) -> int | None:
    """Open everything, watch the folder and serve the page; gives the signal that ended it.

    Raises:
        AddressError, FolderError: what was given cannot be used.
        edgescribe.EdgescribeError: the bundle cannot be loaded, or its engine fails.
    """
    folders = folders_of(options)
    with contextlib.ExitStack() as stack:
        listening = None
        if not options.once:
            listening = stack.enter_context(contextlib.closing(listen(options.host, options.port)))
        if folders is not None:
            stack.enter_context(claimed([folders.inbox, folders.outbox, folders.rejected]))
        summarizer = stack.enter_context(
            edgescribe.load_summarizer(
                options.bundle,
                runtime=options.runtime,
                threads=options.threads,
                source_context=options.source_context,
                memory_mib=options.memory_mib,
            )
        )
        used = summarizer.effective
        LOG.info(
            "%s, %s %s, %d threads, reads %d tokens at once",
            summarizer.info.name, used.engine, used.engine_version, used.threads, summarizer.source_context,
        )  # fmt: skip
        watcher = None
        if folders is not None:
            for folder in (folders.outbox, folders.rejected):
                filing.remove_unfinished_copies(folder)
            watcher = MinutesFolder(summarizer, summarizer.info.name, folders, stop)
        if listening is None:
            return _once(watcher, stop)
        return _serve(options, listening, summarizer, watcher, stop)


def _once(watcher: MinutesFolder | None, stop: threading.Event) -> int | None:
    received: list[int] = []

    def on_signal(number: int, frame: FrameType | None) -> None:
        received.append(number)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    if watcher is not None:
        watcher.run_once()
        LOG.info("%d minutes written, %d files rejected", watcher.written, watcher.rejected)
    return received[0] if received else None


def _serve(
    options: argparse.Namespace,
    listening: socket.socket,
    summarizer: edgescribe.Summarizer,
    watcher: MinutesFolder | None,
    stop: threading.Event,
) -> int | None:
    if not ipaddress.ip_address(listening.getsockname()[0].partition("%")[0]).is_loopback:
        LOG.warning("others in the network can open the page, and transcripts go over the network unencrypted")
    page = PageServer(summarizer, [*own_names(), *options.name])
    config = uvicorn.Config(
        page.application(),
        log_config=None,
        access_log=False,
        log_level="warning",
        server_header=False,
        proxy_headers=False,
        ws="none",
        http="h11",
        loop="asyncio",
        limit_concurrency=64,
        timeout_graceful_shutdown=5,
    )
    server = Server(config, page, stop)
    with ThreadPoolExecutor(1, "folder") as thread:
        watching = thread.submit(watcher.run if watcher is not None else stop.wait)
        # were it to fail, the page alone would look as if all went well
        watching.add_done_callback(lambda _: setattr(server, "should_exit", True))
        if watcher is not None:
            LOG.info("watching %s", options.inbox)
        try:
            asyncio.run(server.serve(sockets=[listening]))
        finally:
            stop.set()
        watching.result()
    return server.stopped_by


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code."""
    options = read_options(arguments)
    log_to_stderr(options.verbose)
    logging.captureWarnings(True)
    try:
        number = work(options, threading.Event())
    except (AddressError, FolderError) as error:
        LOG.error("%s", error)
        return NOT_USABLE
    except edgescribe.EdgescribeError as error:
        LOG.error("%s", error)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    LOG.info("ended")
    return 130 if number == signal.SIGINT else 0


if __name__ == "__main__":
    sys.exit(main())
