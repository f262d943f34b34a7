"""A page for writing with the board's own student: drafts, rewrites, summaries, continuations, from templates.

::

    python writing_assistant.py --bundle bundle [--host 127.0.0.1] [--port 8080]

The texts go to this process and nowhere else; they are neither stored nor logged. By default just this machine can
open the page. SIGTERM and Ctrl-C end it within a token. Exit codes: 0 stopped; 2 wrong usage; 3 the memory limit is
too small; 4 the bundle, the templates or the address cannot be used; 5 no engine for the bundle is installed or it
fails; 130 after Ctrl-C.
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
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import edgescribe
import uvicorn
from page_server import PageServer
from service_manager import log_to_stderr, notify
from templates import TemplateError, read_templates

LOG = logging.getLogger("writing_assistant")
NOT_USABLE = 4


class AddressError(Exception):
    """The page cannot be served there; the message says why."""


class Server(uvicorn.Server):
    """Tells systemd when the page is there, and stops the texts before it waits for their browsers."""

    def __init__(self, config: uvicorn.Config, page: PageServer) -> None:
        super().__init__(config)
        self._page = page
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
        """Stop the texts, then the connections."""
        notify("STOPPING=1")
        self._page.line.close()
        await super().shutdown(sockets)


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; ends the program with exit code 2 where it is wrong."""
    parser = argparse.ArgumentParser(
        prog="writing_assistant.py", description="Serves a page for writing with the student of a bundle."
    )
    here = Path(__file__).parent
    parser.add_argument("--bundle", type=Path, required=True, help="folder that edgescribe convert wrote")
    parser.add_argument("--host", default="127.0.0.1", help="address to serve at; 0.0.0.0 for all (%(default)s)")
    parser.add_argument("--port", type=int, default=8080, help="0 takes a free one (%(default)s)")
    parser.add_argument(
        "--name", action="append", default=[], help="a name by which browsers may call this machine; may be repeated"
    )
    parser.add_argument("--templates", type=Path, default=here / "templates.toml", help="default: beside the program")
    parser.add_argument(
        "--prefix-cache", type=Path, help="folder that keeps what was computed for system prompts (at most 256 MiB)"
    )
    parser.add_argument("--context", type=int, help="most tokens of prompt and text together; the bundle's by default")
    parser.add_argument("--memory-mib", type=float, help="refuse to start where more memory would be taken")
    parser.add_argument("--runtime", choices=("litert", "onnxruntime", "openvino"), help="engine; the best by default")
    parser.add_argument("--threads", type=int, default=0, help="engine's threads; 0: as many as fit the machine")
    parser.add_argument("--verbose", action="store_true", help="log more; never a text")
    options = parser.parse_args(arguments)
    if not 0 <= options.port <= 65535:
        parser.error(f"--port {options.port} is not between 0 and 65535")
    return options


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


def serve(options: argparse.Namespace) -> int | None:
    """Open everything and serve; gives the signal that ended it.

    Raises:
        AddressError, TemplateError: what was given cannot be used.
        edgescribe.EdgescribeError: the bundle cannot be loaded, or its engine fails.
    """
    templates = read_templates(options.templates)
    loading: dict[str, Any] = {"context": options.context, "memory_mib": options.memory_mib}
    with (
        contextlib.closing(listen(options.host, options.port)) as listening,
        edgescribe.load_writer(
            options.bundle,
            runtime=options.runtime,
            threads=options.threads,
            prefix_dir=options.prefix_cache,
            **loading,
        ) as writer,
    ):
        if not writer.chats:
            raise edgescribe.BundleError(
                f"{options.bundle}: its student has no chat template, so it follows no instructions; convert a student "
                "that was tuned for conversations"
            )
        used = writer.effective
        LOG.info(
            "%s, %s %s, %d threads, context of %d tokens",
            writer.info.name, used.engine, used.engine_version, used.threads, writer.context,
        )  # fmt: skip
        if not ipaddress.ip_address(listening.getsockname()[0].partition("%")[0]).is_loopback:
            LOG.warning("others in the network can open the page, and texts go over the network unencrypted")
        page = PageServer(writer, templates, [*own_names(), *options.name])
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
            limit_concurrency=256,
            timeout_graceful_shutdown=5,
        )
        server = Server(config, page)
        asyncio.run(server.serve(sockets=[listening]))
        return server.stopped_by


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code."""
    options = read_options(arguments)
    log_to_stderr(options.verbose)
    logging.captureWarnings(True)
    try:
        number = serve(options)
    except (AddressError, TemplateError) as error:
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
